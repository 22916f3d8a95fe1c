import pytest

from router.adapters.prompts import HEAD_CHARS, TAIL_CHARS, clip, prompt_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (["first", "second"], "first"),
        ([{"role": "user", "content": "hi"}], "hi"),
        (
            [
                {"role": "user", "content": "old"},
                {"role": "assistant", "content": "answer"},
                {"role": "user", "content": "new"},
            ],
            "new",
        ),
        ([{"role": "system", "content": "only"}], "only"),
        ([{"role": "user", "content": [{"type": "text", "text": "part"}]}], "part"),
        ([{"role": "user", "content": None}], ""),
        ([{"role": "user", "content": [{"type": "text", "text": 7}, 3]}], ""),
        ([], ""),
        (7, ""),
    ],
)
def test_the_deciding_text(value, text):
    assert prompt_of(value).text == text


def test_a_long_prompt_keeps_its_ends():
    text = "start" + "x" * 100_000 + "end"
    clipped = clip(text)
    assert clipped.startswith("start")
    assert clipped.endswith("end")
    assert len(clipped) == HEAD_CHARS + TAIL_CHARS + 1
