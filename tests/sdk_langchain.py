"""By `test_sdks.py`, with some SDK's own Python: BASE_URL KEY. The calls of langchain's users."""

import sys

import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL, KEY = sys.argv[1:]
ARGUMENTS = '{"city": "Oslo"}'


class Weather(BaseModel):
    """Where it is asked for."""

    city: str


@tool
def weather(city: str) -> str:
    """The weather there."""
    return city


def model(name="echo", **more):
    return ChatOpenAI(**{"model": name, "base_url": URL, "api_key": KEY, "max_retries": 0} | more)


def refused(kind, asked, said="one"):
    try:
        asked.invoke(said)
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


assert model().invoke("one two three").content == "one two three"
assert model("auto").invoke("one").response_metadata["model_name"] == "echo"
assert "".join(part.content for part in model().stream("one two three")) == "one two three"
assert [m.content for m in model().batch(["one", "two"])] == ["one", "two"]
(called,) = model().bind_tools([weather]).invoke(ARGUMENTS).tool_calls
assert (called["name"], called["args"]) == ("weather", {"city": "Oslo"})
for method in ("json_schema", "function_calling", "json_mode"):
    found = model().with_structured_output(Weather, method=method).invoke(ARGUMENTS)
    assert found == Weather(city="Oslo"), method
refused(openai.NotFoundError, model("nothing"))
refused(openai.BadRequestError, model(), [])
refused(openai.RateLimitError, model("full"))
refused(openai.AuthenticationError, model(api_key="rh-wrong"))
refused(openai.APITimeoutError, model("slow", timeout=0.3))
