"""`python -m` by `test_sdks.py`, with some SDK's own Python: BASE_URL KEY. The calls of openai."""

import asyncio
import sys

import openai

URL, KEY = sys.argv[1:]
USER = [{"role": "user", "content": "one two three"}]
ARGUMENTS = '{"city": "Oslo"}'
CALL = [{"role": "user", "content": ARGUMENTS}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]


def client(**more):
    return openai.OpenAI(**{"base_url": URL, "api_key": KEY, "max_retries": 0} | more)


def refused(kind, ask, **said):
    try:
        ask()
    except kind as e:
        for name, value in said.items():
            assert getattr(e, name) == value, (name, getattr(e, name))
        assert e.message
        return
    raise AssertionError(f"no {kind.__name__}")


def answers():
    with client() as ai:
        chat = ai.chat.completions.create
        whole = chat(model="echo", messages=USER, user="me", n=1, seed=1)
        assert whole.choices[0].message.content == "one two three"
        assert (whole.model, whole.usage.total_tokens) == ("echo", 6)
        with chat(
            model="auto", messages=USER, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert (text, chunks[-1].usage.total_tokens) == ("one two three", 6)
        told = chat(model="echo", messages=CALL, tools=TOOLS, tool_choice="auto").choices[0]
        called = told.message.tool_calls[0].function
        assert told.finish_reason == "tool_calls"
        assert (called.name, called.arguments) == ("weather", ARGUMENTS)
        parts = list(chat(model="echo", messages=CALL, tools=TOOLS, stream=True))
        assert parts[0].choices[0].delta.tool_calls[0].function.arguments == ARGUMENTS
        formed = chat(model="echo", messages=CALL, response_format={"type": "json_object"})
        assert formed.choices[0].message.content == ARGUMENTS
        old = ai.completions.create(model="echo", prompt="a b", max_tokens=1)
        assert old.choices[0].text == "a"
        listed = {m.id: m for m in ai.models.list()}
        assert {"auto", "echo"} <= listed.keys()
        assert ai.models.retrieve("echo").created == listed["echo"].created > 0
        raw = ai.chat.completions.with_raw_response.create(
            model="echo", messages=USER, extra_headers={"x-request-id": "mine/1"}
        )
        assert raw.headers["x-roundhouse-adapter"] == "base"


def errors():
    with client() as ai:
        chat = ai.chat.completions.create
        refused(
            openai.NotFoundError,
            lambda: chat(model="nothing", messages=USER),
            code="model_not_found",
            param="model",
            type="invalid_request_error",
        )
        refused(openai.NotFoundError, lambda: ai.models.retrieve("nothing"))
        refused(openai.BadRequestError, lambda: chat(model="echo", messages=[]), param="messages")
        refused(openai.BadRequestError, lambda: chat(model="echo", messages=USER, max_tokens=0))
        refused(openai.RateLimitError, lambda: chat(model="full", messages=USER), code="overloaded")
        refused(
            openai.PermissionDeniedError,
            lambda: ai.post("/load_lora_adapter", body={}, cast_to=str),
            code="insufficient_scope",
        )
    with client(api_key="rh-wrong") as ai:
        refused(openai.AuthenticationError, ai.models.list, code="invalid_api_key")
    with client(timeout=0.3) as ai:
        try:
            ai.chat.completions.create(model="slow", messages=USER)
        except openai.APITimeoutError:
            return
        raise AssertionError("no time-out")


async def left():
    """What is given up ends there as well: the test looks."""
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as ai:
        long = [{"role": "user", "content": "word " * 120}]
        stream = await ai.chat.completions.create(model="slow", messages=long, stream=True)
        async for _ in stream:
            break
        await stream.close()
        whole = ai.chat.completions.create(model="slow", messages=USER)
        task = asyncio.create_task(whole)
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


answers()
errors()
asyncio.run(left())
