import json
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter_store.files.door import check_adapter
from adapter_store.files.peft_config import PeftConfig
from cluster.adapters import Experts
from cluster.errors import AdapterRefused
from tests.conftest import ECHO_FACTS, random_tensors

A = "base_model.model.model.layers.0.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.q_proj.lora_B.weight"


# No deadline: on a busy machine a slow disk is not a fault.
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refusal(folder) -> str:
    with pytest.raises(AdapterRefused) as refused:
        check_adapter(folder, ECHO_FACTS)
    assert refused.value.param == "source"
    return refused.value.message


def test_a_good_adapter_passes_and_is_understood(make_adapter):
    checked = check_adapter(make_adapter(rank=4), ECHO_FACTS)
    assert checked.rank == 4
    assert checked.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"r": 64}, "has rank 4 (shape [4, 8]), where the configuration says 64"),
        ({"peft_type": None}, "peft_type"),
        ({"r": True}, "r is true"),
        ({"r": None}, "r is null"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": 1e9}, "at most 1000"),
        ({"lora_alpha": 10**400}, "a finite number"),
        ({"lora_alpha": float("nan")}, "a finite number"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_by_key(make_adapter, config, named):
    assert named in refusal(make_adapter(config=config))


def test_rslora_passes(make_adapter):
    assert check_adapter(make_adapter(config={"use_rslora": True}), ECHO_FACTS).rank == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({A: torch.zeros(4, 9)}, "shape [4, 9], echo needs [4, 8]"),
        ({B: torch.zeros(8, 3)}, "has rank 3 (shape [8, 3]), where the configuration says 4"),
        ({B: torch.full((8, 4), float("nan"))}, "finite values"),
        ({B: torch.full((8, 4), float("inf"))}, "finite values"),
        ({B: torch.full((8, 4), 1e30)}, "at most 1000"),
        ({B: torch.full((8, 4), 1e300, dtype=torch.float64)}, "at most 1000"),
        ({B: torch.zeros(8, 4, dtype=torch.float8_e4m3fn)}, "must be float32"),
        ({B: torch.zeros(8, 4, dtype=torch.int32)}, "is int32; it must be float32"),
        ({"surprise": torch.zeros(1)}, "'surprise' belongs to no LoRA layer"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_tensor(make_adapter, change, named):
    tensors = random_tensors(4, 8, seed=0) | change
    assert named in refusal(make_adapter(tensors=tensors))


def test_half_a_pair_is_refused(make_adapter):
    tensors = random_tensors(4, 8, seed=0)
    del tensors[B]
    assert "q_proj has no lora_B" in refusal(make_adapter(tensors=tensors))


def test_no_tensors_are_refused(make_adapter):
    assert "holds no LoRA tensors" in refusal(make_adapter(tensors={}))


def test_pickles_are_refused_by_content(make_adapter):
    folder = make_adapter()
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "not a safetensors file" in refusal(folder)


@FUZZ
@given(content=st.binary(max_size=400), position=st.integers(0, 200))
def test_no_weights_file_crashes_the_door(make_adapter, content, position):
    """Whatever bytes are written over a good file, the answer is a verdict."""
    folder = make_adapter()
    path = folder / "adapter_model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:position] + content + good[position + len(content) :])
    try:
        check_adapter(folder, ECHO_FACTS)
    except AdapterRefused as e:
        assert e.message


@FUZZ
@given(
    config=st.dictionaries(
        st.sampled_from(["peft_type", "r", "lora_alpha", "bias", "use_dora", "rank_pattern"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3),
        ),
    )
)
def test_no_config_crashes_the_door(make_adapter, config):
    folder = make_adapter(config=config)
    try:
        assert 1 <= check_adapter(folder, ECHO_FACTS).rank <= ECHO_FACTS.max_rank
    except AdapterRefused as e:
        assert e.message


PATHS = st.lists(
    st.sampled_from(["model", "layers", "experts", "0", "1", "12", "attn", "q_proj", "w"]),
    min_size=1,
    max_size=6,
).map(".".join)
ENDS = st.lists(
    st.sampled_from(["q_proj", "v_proj", "attn.q_proj", "layers.1.attn.q_proj", "w"]), min_size=1
)
PATTERNS = st.sampled_from([r".*\.(q|v)_proj", r"model\.layers\.\d+\..*", ".*", "q_proj"])


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=PATHS,
    config=st.fixed_dictionaries(
        {"target_modules": ENDS | PATTERNS},
        optional={
            "exclude_modules": ENDS | PATTERNS,
            "layers_to_transform": st.integers(0, 2) | st.lists(st.integers(0, 12), max_size=3),
            "layers_pattern": st.sampled_from(["layers", "experts"]) | st.just(["layers", "x"]),
            "rank_pattern": st.dictionaries(
                st.sampled_from(["q_proj", r"layers\.1\..*", "."]), st.integers(1, 9)
            ),
            "alpha_pattern": st.dictionaries(
                st.sampled_from(["v_proj", r".*attn.*"]), st.integers(1, 9)
            ),
        },
    ),
)
def test_modules_ranks_and_scales_are_named_by_peft_s_rules(tmp_path, path, config):
    from types import SimpleNamespace

    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (tmp_path / "adapter_config.json").write_text(json.dumps(whole))
    read = PeftConfig.read(tmp_path)
    theirs = SimpleNamespace(modules_to_save=None, target_parameters=None, **config)
    assert read.adapts(path) == bool(check_target_module_exists(theirs, path))
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    rank = ranks.get(get_pattern_key(ranks, path), 4)
    assert read.rank_of(path) == rank
    assert read.scale_of(path, rank) == alphas.get(get_pattern_key(alphas, path), 8) / rank


def test_many_patterns_have_one_time_together(make_adapter):
    """Each is quick; all of them would take minutes."""
    patterns = {f"(a|b)*{i}": 1 for i in range(60_000)}
    assert "rank_pattern" in refusal(make_adapter(config={"rank_pattern": patterns}))


def test_a_tokenizer_beside_it_stops_no_adapter(make_adapter):
    for tokenizer in (
        {"model": {"vocab": [5, "ab", ["a", 1]]}, "added_tokens": [{"content": {"x": 1}, "id": 1}]},
        {"model": {"vocab": {"a": [1]}}, "added_tokens": [{"content": ["x"]}, 7]},
        ["x"],
    ):
        folder = make_adapter()
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text('{"chat_template": [{"name": 3}, 4]}')
        assert check_adapter(folder, ECHO_FACTS.model_copy(update={"vocabulary": "v"})).rank == 4


def stacked(experts, *halves) -> dict:
    path, tensors = "base_model.model.model.layers.0.mlp.experts", {}
    for half in halves:
        rows, columns = experts.gate_up if half else experts.down
        stack = experts.count * 4
        tensors[f"{path}{half}.lora_A.weight"] = torch.zeros(stack, columns)
        tensors[f"{path}{half}.lora_B.weight"] = torch.zeros(rows, stack)
    return tensors


def single(experts, numbers, parts, rank=4) -> dict:
    tensors = {}
    for number in numbers:
        for part in parts:
            rows, columns = experts.down if part == "down_proj" else (experts.gate_up[0] // 2, 8)
            name = f"base_model.model.{experts.each}.{number}.{part}"
            tensors[f"{name}.lora_A.weight"] = torch.zeros(rank, columns)
            tensors[f"{name}.lora_B.weight"] = torch.zeros(rows, rank)
    return tensors


EXPERTS = Experts(
    count=2,
    gate_up=(8, 8),
    down=(8, 4),
    each="model.layers.0.mlp.experts",
    parts=("gate_proj", "up_proj", "down_proj"),
)
WITH_EXPERTS = ECHO_FACTS.model_copy(update={"experts": {"model.layers.0.mlp.experts": EXPERTS}})
BOTH = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
NAMED = {"target_modules": list(EXPERTS.parts)}


@pytest.mark.parametrize(
    ("config", "tensors", "named"),
    [
        (BOTH, stacked(EXPERTS, "", ".base_layer"), None),
        (BOTH, stacked(EXPERTS, ""), "gate_up_proj or down_proj alone"),
        (
            BOTH | {"target_parameters": ["experts.gate_up_proj"]},
            stacked(EXPERTS, ""),
            "gate_up_proj or down_proj alone",
        ),
        (NAMED, single(EXPERTS, (0, 1), EXPERTS.parts), None),
        (NAMED, single(EXPERTS, (0,), EXPERTS.parts), "3 of 6 matrices"),
        (NAMED, single(EXPERTS, (0, 1), ["down_proj"]), "2 of 6 matrices"),
        (NAMED, single(EXPERTS, (0, 1, 2), EXPERTS.parts), "belongs to no layer"),
        (
            NAMED | {"rank_pattern": {"1.up_proj": 2}},
            single(EXPERTS, (0, 1), EXPERTS.parts) | single(EXPERTS, (1,), ["up_proj"], 2),
            "several ranks",
        ),
        (
            BOTH | NAMED,
            stacked(EXPERTS, "", ".base_layer") | single(EXPERTS, (0, 1), EXPERTS.parts),
            "both stacked and one by one",
        ),
    ],
)
def test_experts_are_adapted_whole_and_in_one_form(make_adapter, config, tensors, named):
    folder = make_adapter(config=config, tensors=tensors)
    if named is None:
        assert check_adapter(folder, WITH_EXPERTS).rank == 4
        return
    with pytest.raises(AdapterRefused, match=named):
        check_adapter(folder, WITH_EXPERTS)


def test_weights_that_peft_tied_are_adapted_together_or_refused(make_adapter):
    facts = ECHO_FACTS.model_copy(
        update={
            "is_tied": True,
            "linear_shapes": {"lm_head": (16, 8)},
            "embedding_shapes": {"model.embed_tokens": (16, 8)},
        }
    )
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 8),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(16, 4),
    }
    embedding = {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 16),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.zeros(8, 4),
    }
    config = {"target_modules": ["model.embed_tokens"], "ensure_weight_tying": True}
    checked = check_adapter(make_adapter(config=config, tensors=head | embedding), facts)
    assert checked.target_modules == ("embed_tokens", "lm_head")
    with pytest.raises(AdapterRefused, match="no tensors for lm_head"):
        check_adapter(make_adapter(config=config, tensors=embedding), facts)
