"""Loading and unloading for clients that were written for vLLM, Kubernetes' controllers included.

They send what vLLM's own server takes, and more (`base_model_name`); what it ignores is ignored.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import ConfigDict

from cluster.errors import InvalidRequest, ModelNotFound, NotFound, SourceMissing, parse
from cluster.values import Value
from deployments.ingress.changes.admin import AdapterAdmin

Body = Callable[[Request], Awaitable[dict[str, Any]]]
# Its clients know these fields by other names.
_FIELDS = {"name": "lora_name", "source": "lora_path", "base_model": "base_model_name"}


class Load(Value):
    """What `POST /v1/load_lora_adapter` takes."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False
    base_model_name: str | None = None


class Unload(Value):
    """What `POST /v1/unload_lora_adapter` takes."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str
    lora_int_id: int | None = None


def add_vllm(router: APIRouter, admin: AdapterAdmin, body_of: Body) -> None:
    @router.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        wanted = parse(Load, await body_of(request), keep_unknown=True)
        if not wanted.lora_name or not wanted.lora_path:
            param = "lora_path" if wanted.lora_name else "lora_name"
            raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided.", param=param)
        try:
            await admin.load(
                wanted.lora_name,
                wanted.lora_path,
                replace=wanted.load_inplace,
                tenant=request.state.viewer.owner,
                base_model=wanted.base_model_name or None,
            )
        except SourceMissing as e:
            raise NotFound(e.message, param="lora_path") from e
        except InvalidRequest as e:
            e.param = _FIELDS.get(e.param or "", e.param)
            raise
        return PlainTextResponse(f"Success: LoRA adapter '{wanted.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        wanted = parse(Unload, await body_of(request), keep_unknown=True)
        if not wanted.lora_name:
            raise InvalidRequest(
                "'lora_name' needs to be provided to unload a LoRA adapter.", param="lora_name"
            )
        try:
            await admin.delete(wanted.lora_name)
        except ModelNotFound as e:
            raise NotFound(
                f"The lora adapter '{wanted.lora_name}' cannot be found.", param="lora_name"
            ) from e
        return PlainTextResponse(
            f"Success: LoRA adapter '{wanted.lora_name}' removed successfully."
        )
