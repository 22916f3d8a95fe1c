"""Every row of a mixed batch gets its own adapter: the engine against transformers and peft.

A small random model in float32, so that the reference is exact; adapters of several ranks on
several layers, more than there are slots, in steps that mix prefill (in chunks), decode and base
rows, twice over with the prefix cache on.
"""

import json
import subprocess
import sys
from pathlib import Path

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


def answers_of(subject: str, folder: Path, /, **lora) -> list[list[tuple[int, float]]]:
    """What the engine of a benchmark's subject answers to `rows`, once or several times over."""
    command = [sys.executable, "-m", "tests.isolation", subject, str(folder), json.dumps(lora)]
    done = subprocess.run(
        command, env=environment(subject), cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text())


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


@pytest.fixture(scope="module")
def one_worker(folder) -> list[list[tuple[int, float]]]:
    return answers_of("ours", folder)


def test_every_row_is_answered_by_its_own_adapter(reference, one_worker):
    assert max(worst(reference, one_worker)) < LOGPROB_TOLERANCE


def test_the_reference_tells_adapters_apart(reference, one_worker):
    """The tolerance has power: with any other adapter, some token is far off."""
    row, answer = next((r, a) for r, a in zip(rows(), one_worker, strict=False) if r.adapter == 1)
    for other in (None, 0, 2, 3, 4, 5):
        assert max(reference.errors(row, other, answer)) > 0.1, f"adapter {other}"


def test_without_a_compiler_it_is_as_right(folder, reference):
    answers = answers_of("ours without a compiler", folder)
    assert max(worst(reference, answers)) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_two_tensor_parallel_workers_answer_the_same(folder, reference, fully_sharded):
    answers = answers_of("ours", folder, tensor_parallel_size=2, fully_sharded=fully_sharded)
    assert max(worst(reference, answers)) < LOGPROB_TOLERANCE


def test_stock_vllm_fails_the_same_test(folder, reference):
    """Why the plugin exists; when this fails, vLLM has mended it and the kernels may go."""
    found = worst(reference, answers_of("stock vLLM", folder))
    wrong = [row.adapter for row, error in zip(rows(), found, strict=True) if error > 0.1]
    assert wrong, "no row was wrong"
    assert set(wrong) == {None}, "base rows are what it mixes up"
