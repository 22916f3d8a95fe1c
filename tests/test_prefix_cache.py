"""vLLM keeps the prompts of tenants apart by their salts, in chats and in completions."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from cluster.adapters import Viewer
from cluster.settings import AuthSettings
from deployments.ingress.apart import kept_apart
from tests.engine_bench import Bench, engine_bench
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.hostile, pytest.mark.timeout(300)]

KEYS = [{"name": name, "sha256": "0" * 64} for name in ("alice", "bob")]
WORDS = [f"w{i + 10}" for i in range(200)]
BLOCK = 32


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("prefix")
    sizes = {"max_model_len": 512, "block_size": BLOCK, "enable_prefix_caching": True}
    with engine_bench(folder, write_tiny_model, **sizes) as bench:
        yield bench


def hits() -> float:
    """Tokens of prompts that were cached, so far."""
    samples = [s for family in REGISTRY.collect() for s in family.samples]
    return sum(s.value for s in samples if s.name == "vllm:prefix_cache_hits_total")


def of_chat(prompt: str) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}


def of_text(prompt: str) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"prompt": prompt}


# Each with a beginning of its own, or the second would find what the first has left.
@pytest.mark.parametrize(("form", "first"), [(of_chat, "w3"), (of_text, "w4")])
def test_a_tenants_prompt_is_cached_for_itself_alone(bench, form, first):
    auth = AuthSettings(enabled=True, keys=KEYS)
    path, body = form(" ".join([first, *WORDS]))

    def cached(owner: str, **fields: Any) -> float:
        before = hits()
        asked = {"model": "tiny", "max_tokens": 1, **body, **fields}
        apart = kept_apart(asked, Viewer(owner=owner), auth, ("messages", "prompt"))
        bench.runner.run(bench.ask(path, dict(apart)))
        return hits() - before

    assert cached("alice") == 0
    whole = cached("alice")
    assert whole > BLOCK
    assert [cached("bob") for _ in range(2)] == [0, whole]
    assert cached("alice", cache_salt="mine") == 0
    assert cached("bob", cache_salt="mine") == 0
    assert cached("alice", cache_salt="mine") == whole
