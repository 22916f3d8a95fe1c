import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter_store.files.door import check_adapter
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
        ({B: torch.zeros(8, 4, dtype=torch.int32)}, "must be float32"),
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
