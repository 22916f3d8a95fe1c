"""Adapters as trainers save them: served as peft would, or refused, with nothing left behind."""

import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter_store.files.blobs import CONFIG, WEIGHTS
from adapter_store.files.door import check_adapter
from cluster.errors import AdapterRefused
from tests.adapter_kinds import ATTENTION, CLOSE, REFUSED, RESULTS, SERVED
from tests.engine_bench import Bench, engine_bench
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with engine_bench(tmp_path_factory.mktemp("kinds"), write_tiny_model) as bench:
        yield bench


@pytest.fixture(scope="module")
def found(bench) -> Iterator[dict[str, Any]]:  # noqa: ARG001  (refusals come first: store is empty)
    """What happened to each kind; held against what the docs say."""
    rows: dict[str, Any] = {}
    yield rows
    if os.environ.get("ROUNDHOUSE_WRITE_KINDS"):
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def documented(what: str) -> dict[str, Any]:
    if os.environ.get("ROUNDHOUSE_WRITE_KINDS"):
        return {}
    row: dict[str, Any] = json.loads(RESULTS.read_text())[what]
    return row


def in_docs(bench: Bench, text: str) -> str:
    return text.replace(bench.path, "org/tiny-llama").replace("|", "\\|")


def test_the_docs_have_each_kind():
    assert list(json.loads(RESULTS.read_text())) == [kind.what for kind in REFUSED + SERVED]


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.what)
def test_it_is_refused_by_its_name_and_leaves_nothing(bench, found, kind):
    folder = bench.make(kind, f"refused-{REFUSED.index(kind)}")
    kind.change(folder)
    with pytest.raises(AdapterRefused) as refusal:
        bench.register(folder, "a")
    assert kind.refused in refusal.value.message
    assert bench.is_empty()
    found[kind.what] = {"says": in_docs(bench, f"refused: {refusal.value.message}")}
    assert documented(kind.what).items() <= found[kind.what].items()


@pytest.mark.parametrize("kind", SERVED, ids=lambda kind: kind.what)
def test_it_answers_as_peft_does(bench, found, kind):
    folder = bench.make(kind, f"served-{SERVED.index(kind)}")
    expected = None if kind.as_changed else bench.of_peft(folder)
    kind.change(folder)
    notices = bench.register(folder, folder.name)
    expected = expected or bench.of_peft(folder)
    difference = max(abs(a - b) for a, b in zip(bench.answers, expected, strict=True))
    assert difference < CLOSE
    is_silent = "answers as the base model" in " ".join(notices)
    assert (bench.moved() < CLOSE) == is_silent
    assert any((kind.notice or "") in notice for notice in notices or ("",)), notices
    assert bool(notices) == bool(kind.notice), notices
    says = in_docs(bench, "; ".join(["served", *notices]))
    found[kind.what] = {"says": says, "difference": difference}
    assert documented(kind.what).get("says", says) == says


VALUES = st.none() | st.booleans() | st.integers(-1, 70) | st.floats() | st.text(max_size=4)
ODD = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
)
MODULES = st.sampled_from([*ATTENTION, "up_proj", "lm_head", "c_attn", "layers.0.mlp.down_proj"])
# What is often right comes often: an adapter that passes needs all of it to be.
CONFIGS = st.fixed_dictionaries(
    {
        "peft_type": st.just("LORA"),
        "r": st.integers(1, 9),
        "lora_alpha": st.integers(-20, 20) | st.floats(-2e3, 2e3),
        "target_modules": st.sampled_from(["all-linear", r".*_proj", list(ATTENTION)])
        | st.lists(MODULES, min_size=1)
        | st.sampled_from(["all-linear", r".*_proj", r"model\.layers\.1\..*", "(", "q_proj"]),
    },
    optional={
        "rank_pattern": st.dictionaries(MODULES, st.integers(1, 9), max_size=2),
        "alpha_pattern": st.dictionaries(MODULES, st.floats(-100, 100), max_size=2),
        "use_rslora": st.booleans(),
        "layers_to_transform": st.just([]) | st.lists(st.integers(0, 3), max_size=2),
        "exclude_modules": st.just([]) | MODULES | st.lists(MODULES, max_size=2),
        "init_lora_weights": st.sampled_from([True, False, "gaussian", "eva"] * 2 + ["pissa", "x"]),
    },
)
OFTEN = st.sampled_from(["base_model.model."] * 12 + ["", "base_model.model.model.", "_orig_mod."])
DTYPES = st.sampled_from(["float32"] * 12 + ["float16", "bfloat16", "float64", "int8"])
TENSORS = st.lists(
    st.tuples(
        OFTEN,
        st.sampled_from([0, 0, 1, 1, 2, 2, 3]),
        st.sampled_from([*(f"self_attn.{m}" for m in ATTENTION), "mlp.up_proj", "mlp.down_proj"]),
        st.sampled_from([None] * 4 + [*range(1, 10)]),
        DTYPES,
        st.sampled_from([0.0, 0.1, 0.1, 0.1, 900.0, 2000.0]),
    ),
    min_size=1,
    max_size=2,
)


PASSED: list[Path] = []


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=CONFIGS, odd=st.dictionaries(st.text(max_size=12), ODD, max_size=1), drawn=TENSORS)
def test_what_the_door_lets_pass_the_engine_takes(bench, config, odd, drawn):
    """Whatever configuration comes with whatever tensors: one that is refused is refused at the
    door, and one that passes is loaded and answers with numbers."""
    import torch
    from safetensors.torch import save_file

    folder = bench.folder / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config | odd))
    tensors = {}
    for prefix, layer, module, rank, dtype, size in drawn:
        out, size_in = bench.facts.linear_shapes.get(f"model.layers.{layer}.{module}", (128, 128))
        name = f"{prefix}model.layers.{layer}.{module}.lora"
        rows = rank or config["r"]
        tensors[f"{name}_A.weight"] = torch.full((rows, size_in), size).to(getattr(torch, dtype))
        tensors[f"{name}_B.weight"] = torch.full((out, rows), size).to(getattr(torch, dtype))
    save_file(tensors, folder / WEIGHTS)
    try:
        check_adapter(folder, bench.facts)
    except AdapterRefused as e:
        assert e.message
        return
    bench.runner.run(bench.load(uuid.uuid4().hex, folder))
    PASSED.append(folder)
    assert all(math.isfinite(value) for value in bench.answers)


def test_a_good_part_of_what_is_drawn_passes_the_door():
    """Else the test above would prove little."""
    assert len(PASSED) > 20
