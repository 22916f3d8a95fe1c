"""What Ray Serve says of our deployments, and why one does not run, in a line."""

import re
from typing import Any

from cluster.state import DeploymentState

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


def why_not_running(app: Any) -> str:
    """The most telling line of an application that failed (Serve's `ApplicationStatusOverview`)."""
    messages = [d.message for d in app.deployments.values() if d.message] or [app.message]
    return telling_line("\n".join(messages)) or "no reason given"


def telling_line(message: str) -> str:
    """The exception that a replica died of, out of the traceback that Serve keeps."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if _EXCEPTION.match(line)]
    return _EXCEPTION.sub("", errors[-1]) if errors else (lines or [""])[-1]
