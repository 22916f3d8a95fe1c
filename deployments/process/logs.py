"""Log lines as JSON, one object each, to the standard error of every process.

Prompts are in none of them unless `logging.prompts` says so.
"""

import logging
import sys
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

from cluster.settings import LoggingSettings

_OURS = ("cluster", "adapter_store", "router", "deployments")
_FIELDS = ("asctime", "levelname", "name", "message")
_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}


# What the running task works on; tasks that it starts inherit it.
_request: ContextVar[dict[str, str] | None] = ContextVar("request", default=None)


def about(request_id: str, adapter: str) -> None:
    """Name the request in every line that this task, and those it starts, write from now on."""
    _request.set({**(_request.get() or {}), "request_id": request_id, "adapter": adapter})


def about_trace(trace_id: str) -> None:
    """Likewise its trace, where there is one."""
    if trace_id:
        _request.set({**(_request.get() or {}), "trace_id": trace_id})


class _AboutRequest(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_request.get() or {}).items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def configure(settings: LoggingSettings, process: str) -> None:
    """Called once by each process of the cluster; `process` is the name it goes by."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        template = " ".join(f"%({field})s" for field in _FIELDS)
        handler.setFormatter(
            JsonFormatter(template, rename_fields=_NAMES, static_fields={"process": process})
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_AboutRequest())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.level)
        # Ray has handlers of its own at the root, and would say it a second time.
        logger.propagate = False
