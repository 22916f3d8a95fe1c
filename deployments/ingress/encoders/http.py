"""For admins: list, use, roll back. Prompt routers follow the store."""

from typing import Any

from fastapi import APIRouter, Request

from adapter_store.encoders.kept import EncoderStore
from cluster.encoders.kept import Encoders
from cluster.errors import parse
from cluster.values import Value
from deployments.ingress.bodies import read_json


class Use(Value):
    """What `PUT /v1/router/encoders` takes; None: the encoder of the settings."""

    id: str | None


def add_encoders(admins: APIRouter, store: EncoderStore, max_body_bytes: int) -> None:
    @admins.get("/v1/router/encoders")
    async def show() -> dict[str, Any]:
        return shown(await store.newest())

    @admins.put("/v1/router/encoders")
    async def use(request: Request) -> dict[str, Any]:
        wanted = parse(Use, await read_json(request, max_body_bytes))
        return shown(await store.change(lambda encoders: encoders.using(wanted.id)))

    @admins.post("/v1/router/encoders/rollback")
    async def rollback() -> dict[str, Any]:
        return shown(await store.change(Encoders.rolled_back))


def shown(encoders: Encoders) -> dict[str, Any]:
    """As the API shows them, the newest first."""
    kept = [encoder.model_dump(mode="json") for encoder in reversed(encoders.kept)]
    previous = list(encoders.previous)
    return {"held": encoders.held, "previous": previous, "encoders": kept}
