"""Base models with experts: adapters on attention, experts and routers answer as peft's."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster.errors import AdapterRefused
from tests.adapter_kinds import CLOSE, Kind, config, tensors
from tests.engine_bench import Bench, engine_bench
from tests.tiny_model import VOCABULARY, write_random

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(180),
    # peft's, of patterns that it has made itself for experts, and heeds.
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]

STACKED = {
    "target_modules": ["q_proj"],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}
EXPERTS = 4


def write_model(name: str, folder: Path) -> None:
    import torch
    import transformers

    fields = {
        "Mixtral": {"intermediate_size": 96, "num_local_experts": EXPERTS},
        "Qwen3Moe": {"moe_intermediate_size": 32, "num_experts": EXPERTS, "norm_topk_prob": True},
        "GptOss": {"intermediate_size": 96, "num_local_experts": EXPERTS, "sliding_window": 32},
    }[name]
    torch.manual_seed(0)
    of_model = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's attention on CPU knows
        num_experts_per_tok=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        **fields,
    )
    write_random(folder, getattr(transformers, f"{name}ForCausalLM")(of_model))


@pytest.fixture(scope="module", params=["Mixtral", "Qwen3Moe", "GptOss"])
def bench(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp(request.param)
    with engine_bench(folder, partial(write_model, request.param)) as bench:
        yield bench


def one_by_one(found: dict) -> dict:
    """As files had it before transformers 5: a pair for each expert, of the same weights."""
    single = {}
    for name, value in found.items():
        path, _, rest = name.partition(".mlp.experts.")
        if not rest:
            single[name] = value
            continue
        half = "A" if "lora_A" in rest else "B"
        is_gate_up = rest.startswith("base_layer")
        for expert in range(EXPERTS):
            mine = value.chunk(EXPERTS)[expert] if half == "A" else value[:, expert::EXPERTS]
            halves = [mine, mine] if half == "A" else mine.chunk(2)
            parts = dict(zip(("gate_proj", "up_proj"), halves, strict=True))
            for part, tensor in (parts if is_gate_up else {"down_proj": mine}).items():
                key = f"{path}.mlp.experts.{expert}.{part}.lora_{half}.weight"
                single[key] = tensor.contiguous().clone()
    return single


def singles(folder: Path) -> None:
    tensors(one_by_one)(folder)
    names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    config(target_modules=names, target_parameters=None)(folder)


def check(bench: Bench, kind: Kind) -> None:
    folder = bench.make(kind, kind.what)
    expected = bench.of_peft(folder)
    kind.change(folder)
    notices = bench.register(folder, kind.what)
    difference = max(abs(a - b) for a, b in zip(bench.answers, expected, strict=True))
    assert difference < CLOSE, (kind.what, difference)
    assert bench.moved() > 1e-2
    assert not notices


def test_adapters_of_a_model_with_experts_answer_as_peft_does(bench):
    check(bench, Kind("attention"))
    check(bench, Kind("stacked", STACKED))
    architecture = bench.facts.architecture
    if architecture != "GptOssForCausalLM":
        check(bench, Kind("router", {"target_modules": ["q_proj", "gate"]}))
        check(bench, Kind("all-linear", {"target_modules": "all-linear"}))
    if architecture == "Qwen3MoeForCausalLM":
        check(bench, Kind("singles", STACKED, change=singles))


def test_experts_that_are_adapted_by_half_are_refused(bench):
    half = Kind("half", {"target_parameters": ["experts.down_proj"]})
    folder = bench.make(half, "half")
    with pytest.raises(AdapterRefused, match="gate_up_proj or down_proj alone"):
        bench.register(folder, "half")
