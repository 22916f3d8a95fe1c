"""Bodies that vLLM's own models refuse, and those that they stumble over.

Some of the models' checks take what they look at for what it should be: an `AttributeError` of
theirs is a client's mistake, and says nothing of where it is. The field is the one without which
the body is read.
"""

import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from vllm.entrypoints.serve.exception_handling.handlers.exception import exception_handler
from vllm.exceptions import VLLMError, VLLMValidationError

from deployments.engines.refusals.problems import worst

_STUMBLES = (AttributeError, KeyError, IndexError, AssertionError, RecursionError, TypeError)
_LONGEST = 300


def handle_bodies(app: FastAPI) -> None:
    """Have the application answer them so."""
    app.exception_handler(RequestValidationError)(_refused)
    for kind in _STUMBLES:
        app.exception_handler(kind)(_stumbled)
    # vLLM has built it already, with handlers of its own.
    app.middleware_stack = app.build_middleware_stack()


async def _refused(request: Request, error: RequestValidationError) -> Response:
    problems = error.errors()
    said = [problem.get("ctx", {}).get("error") for problem in problems]
    found = next((e for e in said if isinstance(e, VLLMValidationError)), None)
    param, message = worst(problems)
    if found is not None:
        param, message = found.parameter or param, str(found.args[0])
    elif param is not None and param.startswith("["):
        # Of a list that is read when it is looked at: what it is in has been forgotten.
        message = f"{param}: {message}"
        param = "messages" if (await request.json()).get("messages") else None
    return _answer(message, param)


async def _stumbled(request: Request, error: Exception) -> Response:
    frames = traceback.extract_tb(error.__traceback__)
    model = _model_of(request)
    if model is None or not any(frame.name == "solve_dependencies" for frame in frames):
        failed: Response = await exception_handler(request, error)
        return failed
    body = await request.json()
    param = next((name for name in body if _is_read(model, body, without=name)), None)
    said = f"{type(error).__name__}: {error}"[:_LONGEST]
    return _answer(f"{param or 'the body'} cannot be read ({said})", param)


def _model_of(request: Request) -> type[BaseModel] | None:
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = getattr(getattr(field, "field_info", None), "annotation", None)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _is_read(model: type[BaseModel], body: dict[str, Any], *, without: str) -> bool:
    try:
        model.model_validate({name: value for name, value in body.items() if name != without})
    except (ValidationError, VLLMError):
        return True  # another mistake, which would be told as one
    except _STUMBLES:
        return False
    return True


def _answer(message: str, param: str | None) -> Response:
    return JSONResponse({"error": {"message": message, "param": param}}, 400)
