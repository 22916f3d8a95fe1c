"""What the queue is told of a request."""

import pytest

from cluster.adapters import Viewer
from cluster.errors import InvalidRequest
from cluster.settings import DispatchSettings
from deployments.ingress.terms import Terms, terms_of

PROMPT = b"x" * 40


def terms(body: dict) -> Terms:
    return terms_of(body, PROMPT, Viewer(), {}, DispatchSettings())


@pytest.mark.parametrize(
    ("body", "sequences"),
    [
        ({}, 1),
        ({"n": None}, 1),
        ({"n": 4}, 4),
    ],
)
def test_every_answer_counts(body, sequences):
    found = terms(body | {"max_tokens": 100})
    assert found.sequences == sequences
    assert found.tokens == found.prompt_tokens + 100 * sequences


@pytest.mark.parametrize("n", [0, -1, 129, 1.5, "4", True])
def test_an_n_that_cannot_be_is_refused(n):
    with pytest.raises(InvalidRequest, match="n must be a whole number from 1 to 128") as refused:
        terms({"n": n})
    assert refused.value.param == "n"


def test_an_answer_whose_length_is_open_has_a_usual_one():
    assert terms({"max_tokens": None}).tokens == terms({}).tokens > terms({"max_tokens": 1}).tokens
