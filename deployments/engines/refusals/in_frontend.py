"""In vLLM's frontend: what fails while a request is read is the request's mistake.

Its template is rendered, its parameters are checked, its grammar is parsed: that asks nothing but
the request and the settings. vLLM knows some of the exceptions that come of it for a client's.
"""

import functools
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import FinishReason
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor

from deployments.engines.refusals.bounds import check_bounds
from deployments.engines.refusals.in_core import LONGEST, MARK, wrap
from deployments.engines.refusals.problems import worst
from deployments.engines.refusals.told import CONTENT, GRAMMAR, TEMPLATE

T = TypeVar("T")

# Of the machine, not of the request; and what vLLM has sorted itself.
_OURS = (OSError, MemoryError, VLLMError)
# What code says of itself where it has not looked for the mistake.
_CLUELESS = (KeyError, AttributeError, AssertionError, IndexError)

SHAPES = {
    OnlineRenderer: {
        "render_chat": ["self", "request", "skip_mm_cache"],
        "render_completion": ["self", "request", "skip_mm_cache"],
    },
    SamplingParams: {
        "_validate_structured_outputs": [
            *("self", "model_config", "structured_outputs_config", "tokenizer"),
        ]
    },
    OutputProcessor: {
        "process_outputs": [
            *("self", "engine_core_outputs", "engine_core_timestamp", "iteration_stats"),
            "weight_version",
        ]
    },
}


class Refused(VLLMValidationError):  # type: ignore[misc]  # vLLM is not followed
    """A request's mistake; unlike vLLM's own, without the parameter in its words."""

    def __str__(self) -> str:
        return str(self.args[0])


def install() -> None:
    """Wrap its methods; before there is an engine."""
    wrap(OnlineRenderer, "render_chat", _rendering)
    wrap(OnlineRenderer, "render_completion", _rendering)
    wrap(InputProcessor, "process_inputs", _reading)
    # Within the one above: a grammar's mistake has a field of its own.
    wrap(SamplingParams, "_validate_structured_outputs", _checking)
    wrap(OutputProcessor, "process_outputs", _raising)


def _refuse(error: BaseException, parameter: str | None) -> NoReturn:
    said = str(error) or type(error).__name__
    if isinstance(error, _CLUELESS):
        said = f"the engine cannot read it ({type(error).__name__}: {said})"
    elif isinstance(error, ValidationError):
        said = ": ".join(filter(None, worst(error.errors())))
    elif isinstance(error, RecursionError):
        said = "it is nested too deeply"
    raise Refused(said[:LONGEST], parameter=parameter) from error


def _reading(read: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(read)
    def reading(*args: Any, **kwargs: Any) -> T:
        try:
            return read(*args, **kwargs)
        except _OURS:
            raise
        except Exception as e:  # noqa: BLE001  (see above: whatever it is)
            _refuse(e, None)

    return reading


def _rendering(render: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(render)
    async def rendering(*args: Any, **kwargs: Any) -> T:
        try:
            return await render(*args, **kwargs)
        except VLLMValidationError as e:
            e.parameter = e.parameter or _rendered(e)
            raise
        except _OURS:
            raise
        except Exception as e:  # noqa: BLE001
            _refuse(e, _rendered(e))

    return rendering


def _rendered(error: BaseException | None) -> str:
    """What of a request has failed to be rendered."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if "jinja2" in str(error) or any("jinja2" in frame.filename for frame in frames):
            return TEMPLATE
        error = error.__cause__ or error.__context__
    return CONTENT


def _checking(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def checking(self: Any, *args: Any) -> None:
        try:
            if self.structured_outputs is not None:
                check_bounds(self.structured_outputs.json)
            check(self, *args)
        except (OSError, MemoryError):
            raise
        except BaseException as e:
            # A panic in the libraries' Rust is no Exception.
            if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
                raise
            _refuse(e, GRAMMAR)

    return checking


def _raising(process: Callable[..., Any]) -> Callable[..., Any]:
    """What the core says of an output that it refused is raised where that is waited for."""

    @functools.wraps(process)
    def raising(self: Any, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        refused = [
            (state.queue, output.stop_reason.removeprefix(MARK))
            for output in engine_core_outputs
            if output.finish_reason == FinishReason.ERROR
            and isinstance(output.stop_reason, str)
            and output.stop_reason.startswith(MARK)
            and (state := self.request_states.get(output.request_id)) is not None
        ]
        told = process(self, engine_core_outputs, *args, **kwargs)
        for queue, said in refused:
            queue.put(Refused(said, parameter=GRAMMAR))
        return told

    return raising
