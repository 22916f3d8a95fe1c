"""By `test_sdks.py`, with some SDK's own Python: BASE_URL KEY. The calls of llama-index's users."""

import sys

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL, KEY = sys.argv[1:]
ARGUMENTS = '{"city": "Oslo"}'


class Weather(BaseModel):
    """Where it is asked for."""

    city: str


def weather(city: str) -> str:
    """The weather there."""
    return f"rain in {city}"


def model(name="echo", **more):
    said = {"model": name, "api_base": URL, "api_key": KEY, "is_chat_model": True}
    said |= {"is_function_calling_model": True, "max_retries": 0, "context_window": 1000}
    return OpenAILike(**said | more)


ONE = ChatMessage(content="one")


def refused(kind, asked, said=(ONE,)):
    try:
        asked.chat(list(said))
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


message = [ChatMessage(role="user", content="one two three")]
assert model().chat(message).message.content == "one two three"
assert model("auto").complete("one two").text == "one two"
assert model(is_chat_model=False).complete("one two").text == "one two"
assert "".join(part.delta or "" for part in model().stream_chat(message)) == "one two three"
told = model().predict_and_call([FunctionTool.from_defaults(weather)], ARGUMENTS)
assert told.response == "rain in Oslo"
asked = [ChatMessage(role="user", content=ARGUMENTS)]
assert model().as_structured_llm(Weather).chat(asked).raw == Weather(city="Oslo")
refused(openai.NotFoundError, model("nothing"))
refused(openai.BadRequestError, model(), ())
refused(openai.RateLimitError, model("full"))
refused(openai.AuthenticationError, model(api_key="rh-wrong"))
refused(openai.APITimeoutError, model("slow", timeout=0.3))
