"""By `test_sdks.py`, with some SDK's own Python: BASE_URL KEY. The calls of instructor's users."""

import sys

import instructor
import openai
from instructor import Mode
from instructor.core import InstructorError
from pydantic import BaseModel

URL, KEY = sys.argv[1:]


class Weather(BaseModel):
    """Where it is asked for."""

    city: str


def client(mode, **more):
    said = {"base_url": URL, "api_key": KEY, "max_retries": 0}
    return instructor.from_openai(openai.OpenAI(**said | more), mode=mode)


def ask(mode=Mode.TOOLS, model="echo", **more):
    message = [{"role": "user", "content": '{"city": "Oslo"}'}]
    return client(mode, **more).create(
        model=model, messages=message, response_model=Weather, max_retries=0
    )


def refused(code, **asked):
    try:
        ask(**asked)
    except (openai.OpenAIError, InstructorError) as e:
        assert code in f"{e!r} {e.__cause__!r}", repr(e)
        return
    raise AssertionError(f"no {code}")


for mode in (Mode.TOOLS, Mode.JSON, Mode.JSON_SCHEMA):
    assert ask(mode).city == "Oslo", mode
parts = list(
    client(Mode.TOOLS).create_partial(
        model="echo",
        messages=[{"role": "user", "content": '{"city": "Oslo"}'}],
        response_model=Weather,
    )
)
assert parts[-1].city == "Oslo"
refused("model_not_found", model="nothing")
refused("overloaded", model="full")
refused("invalid_api_key", api_key="rh-wrong")
