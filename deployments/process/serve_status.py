"""What Ray Serve says of our deployments, and why one does not run, in a line."""

import re
from pathlib import Path
from typing import Any

from cluster.members import DeploymentState

APP = "roundhouse"

_EXCEPTION = re.compile(r"(cluster\.errors\.\w+: |(?=[\w.]*(Error|Exception)\b))")


def deployment_states() -> tuple[DeploymentState, ...]:
    """Every deployment of the application; blocks for a call to Serve's controller."""
    from ray import serve

    app = serve.status().applications.get(APP)
    if app is None:
        return ()
    return tuple(
        DeploymentState(
            name=name,
            status=found.status,
            running=found.replica_states.get("RUNNING", 0),
            reason="" if found.status == "HEALTHY" else telling_line(found.message),
        )
        for name, found in app.deployments.items()
    )


def serve_host() -> str | None:
    """Where Ray Serve listens; None where there is none to be asked, or it does not listen."""
    import ray

    if not ray.is_initialized():
        return None
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return client.http_config.host if client else None


def why_not_running(app: Any) -> str:
    """The most telling line of an application that failed (Serve's `ApplicationStatusOverview`)."""
    messages = [d.message for d in app.deployments.values() if d.message] or [app.message]
    return telling_line("\n".join(messages)) or "no reason given"


def logged_error(temp_dir: Path) -> str | None:
    """What a replica on this machine logged as it died, of those whose reason Serve drops.

    Serve says of an HTTP application no more than that it did not start up.

    Args:
        temp_dir: where Ray keeps the files of its sessions.
    """
    logs = temp_dir.glob("session_*/logs/serve/replica_*.log")
    for log in sorted(logs, key=lambda file: file.stat().st_mtime, reverse=True):
        said, failed, _ = log.read_text(errors="replace").partition("Application startup failed")
        if failed:
            return telling_line(said)
    return None


def telling_line(message: str) -> str:
    """The exception that a replica died of, out of the traceback that Serve keeps."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if _EXCEPTION.match(line)]
    return _EXCEPTION.sub("", errors[-1]) if errors else (lines or [""])[-1]
