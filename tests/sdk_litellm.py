"""By `test_sdks.py`, with some SDK's own Python: BASE_URL KEY. The calls of litellm's users."""

import asyncio
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
import litellm

URL, KEY = sys.argv[1:]
USER = [{"role": "user", "content": "one two three"}]
CALL = [{"role": "user", "content": '{"city": "Oslo"}'}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
HOW = {"api_base": URL, "api_key": KEY, "num_retries": 0}


def ask(model="echo", messages=USER, **more):
    return litellm.completion(**{"model": f"openai/{model}", "messages": messages} | HOW | more)


def refused(kind, **asked):
    try:
        ask(**asked)
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


assert ask().choices[0].message.content == "one two three"
assert ask("auto").usage.total_tokens == 6
parts = [part.choices[0].delta.content or "" for part in ask(stream=True)]
assert "".join(parts) == "one two three"
called = ask(messages=CALL, tools=TOOLS).choices[0].message.tool_calls[0].function
assert (called.name, called.arguments) == ("weather", '{"city": "Oslo"}')
formed = ask(messages=CALL, response_format={"type": "json_object"})
assert formed.choices[0].message.content == '{"city": "Oslo"}'
said = asyncio.run(litellm.acompletion(model="openai/echo", messages=USER, **HOW))
assert said.choices[0].message.content == "one two three"
text = litellm.text_completion(model="text-completion-openai/echo", prompt="a b", **HOW)
assert text.choices[0].text == "a b"
assert "echo" in litellm.get_valid_models(
    check_provider_endpoint=True, custom_llm_provider="openai", api_base=URL, api_key=KEY
)
refused(litellm.NotFoundError, model="nothing")
refused(litellm.BadRequestError, messages=USER, max_tokens=0)
refused(litellm.RateLimitError, model="full")
refused(litellm.AuthenticationError, api_key="rh-wrong")
refused(litellm.Timeout, model="slow", timeout=0.3)
