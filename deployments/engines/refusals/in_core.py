"""In vLLM's core: a grammar that does not compile, or that other fields leave nothing of.

That ends the one request, of which vLLM says "Internal server error". Its output now says why.
"""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceBackend

# Before the words of an output's `stop_reason`, on its way to the frontend.
MARK = "roundhouse: "
LONGEST = 1000

SHAPES = {
    Scheduler: {"update_from_output": ["self", "scheduler_output", "model_runner_output"]},
    StructuredOutputManager: {"accept_tokens": ["self", "request", "new_token_ids"]},
    GuidanceBackend: {
        "compile_grammar": ["self", "request_type", "grammar_spec", "stop_token_ids"],
    },
}


def install() -> None:
    """Wrap its methods."""
    wrap(GuidanceBackend, "compile_grammar", _compiling)
    wrap(StructuredOutputManager, "accept_tokens", _accepting)
    wrap(Scheduler, "update_from_output", _telling)


def wrap(owner: type, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put a method into another one."""
    setattr(owner, name, wrapper(getattr(owner, name)))


def _compiling(compile_grammar: Callable[..., Any]) -> Callable[..., Any]:
    """Guidance makes a grammar of anything, and says in a warning that it is none."""

    @functools.wraps(compile_grammar)
    def compiling(*args: Any, **kwargs: Any) -> Any:
        grammar = compile_grammar(*args, **kwargs)
        if said := grammar.ll_matcher.get_error():
            raise ValueError(said)
        return grammar

    return compiling


def _accepting(accept: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(accept)
    def accepting(self: Any, request: Any, new_token_ids: list[int]) -> bool:
        is_accepted = accept(self, request, new_token_ids)
        if not is_accepted:
            request.roundhouse_refused = _stuck(self.backend, request)
        return is_accepted

    return accepting


def _stuck(backend: Any, request: Any) -> str:
    """Why a grammar cannot go on, where that is the request's doing; else it is the engine's."""
    grammar = request.structured_output_request.grammar
    matcher = getattr(grammar, "ll_matcher", None)
    said = str(matcher.get_error() if matcher is not None else "").partition("\n")[0]
    if "limit" in said:
        return f"it is too large to be followed ({said})"
    if fields := _at_odds(request.sampling_params):
        return f"with {' and '.join(fields)} it leaves no token to go on with"
    if matcher is None and _is_at_an_end(backend, grammar):
        return "it leaves no token to go on with"
    return ""


def _is_at_an_end(backend: Any, grammar: Any) -> bool:
    mask = backend.allocate_token_bitmask(1)
    grammar.fill_bitmask(mask, 0)
    return not bool(mask.any())


def _at_odds(params: Any) -> list[str]:
    """Fields of a request that can rule out what its grammar wants."""
    named = {
        "min_tokens": params.min_tokens,
        "logit_bias": params.logit_bias,
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": params.bad_words,
        "ignore_eos": params.ignore_eos,
    }
    return [name for name, value in named.items() if value]


def _telling(update: Callable[..., Any]) -> Callable[..., Any]:
    """An output that ends in an error says why, where the request is why."""

    @functools.wraps(update)
    def telling(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        # Most steps have none. What has ended is forgotten by the end of the step.
        failed = self.grammar_compile_error_reqs
        if not (failed or scheduler_output.has_structured_output_requests):
            return update(self, scheduler_output, model_runner_output)
        known, suspects = self.requests, failed | scheduler_output.num_scheduled_tokens.keys()
        asked = [
            known[name] for name in suspects if name in known and known[name].use_structured_output
        ]
        told = update(self, scheduler_output, model_runner_output)
        why = {request.request_id: said for request in asked if (said := _why(request))}
        if why:
            for sent in told.values():
                for output in sent.outputs:
                    if output.finish_reason == FinishReason.ERROR and output.request_id in why:
                        output.stop_reason = MARK + why[output.request_id]
        return told

    return telling


def _why(request: Any) -> str:
    grammar = request.structured_output_request.grammar
    if isinstance(grammar, MemoryError):
        return ""
    if isinstance(grammar, Exception):
        return str(grammar)[:LONGEST] or type(grammar).__name__
    return getattr(request, "roundhouse_refused", "")
