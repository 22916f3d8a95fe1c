"""What goes wrong while an answer is on its way, the client hears; that the store hangs, probes."""

import json
import signal
import time

import httpx
import pytest

from cluster.errors import ReplicaLost
from cluster.settings import StoreSettings
from tests.conftest import until
from tests.redis_servers import server
from tests.test_http import _counted, ask, chat, error, world

pytestmark = [pytest.mark.redis, pytest.mark.hostile]


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


@pytest.mark.parametrize(
    ("problem", "status", "code"),
    [
        (ReplicaLost("killed by the test"), "503", "replica_lost"),
        (RuntimeError("a secret of ours"), "500", None),
        (MemoryError(), "500", None),
    ],
)
async def test_a_stream_that_breaks_ends_with_one_error_event(rh, problem, status, code):
    labels = {"model": "echo", "adapter": "", "route": "explicit", "status": status}
    before = _counted("roundhouse_requests_total", **labels)
    rh.pool.dies_after, rh.pool.dies_of = 2, problem
    answer = await ask(rh, "echo", "one two three four", stream=True)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert [bool(event.get("choices")) for event in events] == [True, True, False]
    found = events[-1]["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["code"] == code
    assert "secret" not in answer.text
    assert _counted("roundhouse_requests_total", **labels) == before + 1
    assert rh.pool.open_answers == 0


async def test_a_whole_answer_that_breaks_is_an_error_in_openais_shape(rh):
    rh.pool.dies_after, rh.pool.dies_of = 0, RuntimeError("a secret of ours")
    # As a server does, which logs what the application raises after its answer.
    transport = httpx.ASGITransport(app=rh.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post("/v1/chat/completions", json=chat("echo"))
    assert "log names this request id" in error(answer, 500)["message"]
    assert answer.headers["content-type"] == "application/json"


async def test_probes_do_not_hang_with_the_store(tmp_path, prompt_router):
    with server(tmp_path / "store", "") as store:
        settings = StoreSettings(url=f"redis://127.0.0.1:{store.port}/0", lease_s=1)
        async with world(settings, prompt_router, tmp_path) as rh:
            await until(lambda: rh.client.get("/healthz"))
            store.process.send_signal(signal.SIGSTOP)
            try:
                for path, most_s in (("/readyz", 1.0), ("/healthz", 0.2), ("/v1/cluster", 3.0)):
                    began = time.monotonic()
                    answer = await rh.client.get(path)
                    assert time.monotonic() - began < most_s, path
                    assert answer.status_code in (200, 503)
            finally:
                store.process.send_signal(signal.SIGCONT)
