"""Ready means ready: what is to be preloaded is in place, or it is told why it is not."""

import asyncio

import pytest

from cluster.members import Ingress, Replica, Report, Router
from cluster.settings import parse_settings
from deployments.command.lifecycle import Problem, preload
from tests.conftest import until
from tests.test_http import ask, error

pytestmark = pytest.mark.redis

MODEL = {"id": "echo", "path": "none", "engine": "echo"}


def members(position: str) -> list[Report]:
    """All that the settings want, as far as that."""
    ingresses = [Ingress(id=f"i{i}", position=position) for i in range(2)]
    return [
        Replica(id="a", model="echo", position=position),
        Router(id="r", position=position),
        *ingresses,
    ]


async def test_ready_means_that_the_preload_is_in_place_and_what_failed_of_it_is_told(
    make_world, make_adapter, store, store_settings, tmp_path
):
    """`auto` must not answer with the base model while its adapters are on their way."""
    folders = [str(make_adapter("cron")), str(tmp_path / "nothing")]
    async with make_world(preload=folders) as rh:

        async def waiting(position: str = "0-0") -> str:
            for member in members(position):
                await store.members.renew(member)
            answer = await rh.client.get("/readyz")
            return "" if answer.status_code == 200 else error(answer, 503)["message"]

        assert await waiting() == "waiting for 2 of 2 adapters of `preload`"
        own = {"url": store_settings.url, "namespace": store_settings.namespace}
        tree = {"models": [MODEL], "preload": folders}
        tree["store"] = own | {"data_dir": str(tmp_path / "data")}
        said: list[str | Problem] = []
        preloading = asyncio.create_task(preload(parse_settings(tree), said.append))
        try:

            async def is_registered() -> bool:
                return await waiting() == "waiting for every process to take `preload` in"

            await until(is_registered, timeout_s=20)
            position, _ = await store.registry.position()
            await waiting(position)
            await asyncio.wait_for(preloading, 10)
        finally:
            preloading.cancel()
        answer = await rh.client.get("/readyz")
        told = {"nothing": "nothing is not a folder or an archive"}
        assert answer.json() == {"status": "ready", "not_preloaded": told}
        (problem,) = (word for word in said if isinstance(word, Problem))
        assert f"{tmp_path / 'nothing'} is not a folder" in problem.said
        decided = await ask(rh, "auto", "an example for cron")
        assert decided.headers["x-roundhouse-adapter"] == "cron"
