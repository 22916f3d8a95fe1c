"""What load balancers, Kubernetes and the controllers of others ask, without a key."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from cluster.errors import Unavailable
from deployments.ingress.overview import Overview

_READING = ["GET", "HEAD"]


def add_probes(app: FastAPI, overview: Overview) -> None:
    """`/healthz` tells of this process alone; `/readyz` of what requests need, and so do `/health`
    and `/ping`, as they do at vLLM's."""

    @app.api_route("/healthz", methods=_READING)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def readyz() -> dict[str, Any]:
        waiting = await overview.not_ready()
        if waiting:
            raise Unavailable(f"waiting for {', '.join(waiting)}")
        failed = overview.not_preloaded
        return {"status": "ready", **({"not_preloaded": failed} if failed else {})}

    for path in ("/readyz", "/health", "/ping"):
        app.add_api_route(path, readyz, methods=_READING)
    # SageMaker's, which vLLM answers as well.
    app.add_api_route("/ping", readyz, methods=["POST"])

    release = {"version": version("roundhouse")}

    @app.api_route("/version", methods=_READING)
    async def tell_version() -> dict[str, str]:
        return release
