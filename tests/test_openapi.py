"""The OpenAPI document is true: it has every route, and strangers who read it find what it says."""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from cluster.calls import CALLS
from deployments.ingress.openapi.document import routes
from deployments.ingress.openapi.endpoint import TUS_BODY
from deployments.ingress.openapi.endpoints import ENDPOINTS
from docs import generate
from tests.conftest import free_port
from tests.hostile import IS_LONG, rounds
from tests.test_http import World, add

pytestmark = [pytest.mark.redis, pytest.mark.hostile]

# The engine checks what is asked of it, which the fake one does in part.
OF_THE_ENGINE = tuple(CALLS)
ALWAYS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]
ERROR = {"message", "type", "param", "code"}


@asynccontextmanager
async def served(rh: World) -> AsyncIterator[str]:
    """The world behind a port, as those that read the document want it."""
    port = free_port()
    config = uvicorn.Config(rh.app, port=port, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


async def test_every_route_is_described_and_nothing_else(make_world):
    async with make_world() as rh:
        assert {offered for offered, _ in routes(rh.app)} == ENDPOINTS.keys()
        made = (await rh.client.get("/openapi.json")).json()
    validate(made)
    assert "securitySchemes" not in made["components"]
    assert generate.openapi()["components"]["securitySchemes"]
    assert made["paths"]["/v1/adapters"]["get"]["parameters"][1]["schema"]["maximum"] == 1000


@pytest.mark.slow
def test_the_schemas_of_vllm_are_those_of_the_vllm_that_is_installed():
    for name, content in generate.engine_schemas().items():
        assert (generate.HERE / name).read_text() == content, "run `make docs`"


@pytest.mark.timeout(900)
async def test_what_readers_of_the_document_send_is_answered_as_it_says(make_world, make_adapter):
    async with make_world() as rh, served(rh) as url:
        await add(rh, make_adapter("cron"))
        document = (await rh.client.get("/openapi.json")).json()
        await asyncio.to_thread(_read_and_try, document, url)


def _read_and_try(document: dict, url: str) -> None:
    failed = []
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in GenerationMode:
            try:
                _try(operation.ok(), mode, url)
            except (Exception, BaseExceptionGroup) as e:  # noqa: BLE001  (all are told at once)
                failed.append("".join(traceback.format_exception_only(e)))
    assert not failed, "\n\n".join(failed)


def _try(operation, mode: GenerationMode, url: str) -> None:
    wanted = [*ALWAYS]
    if operation.path in ("/readyz", "/health", "/ping"):
        wanted.remove(not_a_server_error)  # 503 is what it is for
    if mode is GenerationMode.NEGATIVE and operation.path not in OF_THE_ENGINE:
        wanted.append(checks.negative_data_rejection)

    @settings(
        max_examples=rounds(2, 60),
        derandomize=not IS_LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case) -> None:
        case.call_and_validate(base_url=url, checks=wanted, timeout=30)

    with contextlib.suppress(Unsatisfiable):  # nothing of it can be wrong
        each()


@schemathesis.serializer(TUS_BODY)
def _bytes(_, value):
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PATCH", "/v1/models", 405),
        ("GET", "/v1/adapters?limit=0", 400),
        ("GET", "/v1/adapters/nobody", 404),
        ("POST", "/v1/route", 415),
    ],
)
async def test_errors_have_one_shape(make_world, method, path, status):
    async with make_world() as rh:
        answer = await rh.client.request(method, path, content=b"{}")
    assert answer.status_code == status
    told(answer)


async def test_an_index_is_written_as_clients_write_it(make_world):
    async with make_world() as rh:
        half = '{"model": "echo", "messages": [{"role": "user", "content": "a\\ud800"}]}'
        headers = {"content-type": "application/json"}
        answer = await rh.client.post("/v1/chat/completions", content=half, headers=headers)
        assert told(answer)["param"] == "messages[0].content"


def told(answer: httpx.Response) -> dict:
    error = answer.json()["error"]
    assert set(error) == ERROR
    assert error["code"] is None or isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    return error
