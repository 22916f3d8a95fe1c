"""Every row of a mixed batch gets its own adapter: the engine against transformers and peft.

A small random model in float32, so that the reference is exact; adapters of several ranks on
several layers, more than there are slots, in steps that mix prefill (in chunks), decode and base
rows, twice over with the prefix cache on.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from benchmarks.adapters import write_adapter
from benchmarks.subjects import environment
from tests.isolation import ADAPTERS, Row, rows
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

# The engine sums in another order than the reference; a wrong adapter is off by whole units.
LOGPROB_TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model and its adapters."""
    folder = tmp_path_factory.mktemp("isolation")
    shapes = write_tiny_model(folder / "model")
    for i, (rank, targets) in enumerate(ADAPTERS):
        write_adapter(folder / f"a{i}", shapes, rank, targets, seed=i, spread=0.3)
    return folder


Answers = list[list[tuple[int, float]]]
# Name -> subject of the benchmarks, and settings of its adapters.
SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one worker": ("ours", {}),
    "stock": ("stock vLLM", {}),
    "without a compiler": ("ours without a compiler", {}),
    "two workers": ("ours", {"tensor_parallel_size": 2}),
    "two workers, fully sharded": ("ours", {"tensor_parallel_size": 2, "fully_sharded": True}),
}


def answers_of(name: str, folder: Path) -> Answers:
    """What the engine of a subject answers to `rows`, once or several times over."""
    subject, lora = SUBJECTS[name]
    out = folder / f"{name}.json"
    command = [sys.executable, "-m", "tests.isolation", subject, folder, json.dumps(lora), out]
    done = subprocess.run(
        command, env=environment(subject), cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def answers(folder) -> Iterator[dict[str, Future[Answers]]]:
    """Of all subjects: an engine that starts keeps one core busy, and one whose workers wait for
    each other keeps two."""
    alone = [name for name, (_, lora) in SUBJECTS.items() if "tensor_parallel_size" not in lora]
    with ThreadPoolExecutor(2) as pairs, ThreadPoolExecutor(1) as one:
        found = {name: pairs.submit(answers_of, name, folder) for name in alone}

        def after_those(name: str) -> Answers:
            wait(found[n] for n in alone)
            return answers_of(name, folder)

        together = [name for name in SUBJECTS if name not in alone]
        yield found | {name: one.submit(after_those, name) for name in together}


class Reference:
    def __init__(self, folder: Path) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self._torch = torch
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        self._model = PeftModel.from_pretrained(base, folder / "a0", adapter_name="a0")
        for i in range(1, len(ADAPTERS)):
            self._model.load_adapter(folder / f"a{i}", adapter_name=f"a{i}")
        self._model.eval()

    def errors(self, row: Row, adapter: int | None, answer: list[tuple[int, float]]) -> list[float]:
        """How far the answer is from the model with this adapter: a number for each token.

        The difference of the log-probabilities, or, where the reference would have taken another
        token, how much it prefers that one.
        """
        tokens = [token for token, _ in answer]
        ids = self._torch.tensor([[*row.prompt, *tokens]])
        with self._torch.no_grad():
            if adapter is None:
                with self._model.disable_adapter():
                    logits = self._model(input_ids=ids).logits[0]
            else:
                self._model.set_adapter(f"a{adapter}")
                logits = self._model(input_ids=ids).logits[0]
        expected = logits[len(row.prompt) - 1 : -1].float().log_softmax(-1)
        return [
            max(abs(float(line[token]) - logprob), float(line.max() - line[token]))
            for line, (token, logprob) in zip(expected, answer, strict=True)
        ]


@pytest.fixture(scope="module")
def reference(folder) -> Reference:
    return Reference(folder)


def worst(reference: Reference, answers) -> list[float]:
    asked = rows() * (len(answers) // len(rows()))
    return [
        max(reference.errors(row, row.adapter, answer))
        for row, answer in zip(asked, answers, strict=True)
    ]


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "stock"])
def test_every_row_is_answered_by_its_own_adapter(reference, answers, name):
    assert max(worst(reference, answers[name].result())) < LOGPROB_TOLERANCE


def test_the_reference_tells_adapters_apart(reference, answers):
    """The tolerance has power: with any other adapter, some token is far off."""
    found = zip(rows(), answers["one worker"].result(), strict=False)
    row, answer = next((r, a) for r, a in found if r.adapter == 1)
    for other in (None, 0, 2, 3, 4, 5):
        assert max(reference.errors(row, other, answer)) > 0.1, f"adapter {other}"


def test_stock_vllm_fails_the_same_test(reference, answers):
    """Why the plugin exists; when this fails, vLLM has mended it and the kernels may go."""
    found = worst(reference, answers["stock"].result())
    wrong = [row.adapter for row, error in zip(rows(), found, strict=True) if error > 0.1]
    assert wrong, "no row was wrong"
    assert set(wrong) == {None}, "base rows are what it mixes up"
