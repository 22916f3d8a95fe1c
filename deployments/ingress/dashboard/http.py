"""HTTP of the page, of what it reads, and of `/metrics`."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from deployments.ingress.dashboard.summary import Dashboard
from deployments.process.telemetry import CONTENT_TYPE

_PAGE = Path(__file__).parent / "page"

# The page shows what others have written: nothing of it may run, and nothing comes from elsewhere.
# Inline styles are the charts' own.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class _Files(StaticFiles):
    """Files with the page's headers; a browser asks each time whether its copy is the newest.

    They come whole: what is wrong with a range would be told in a shape that is not ours.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS | {"cache-control": "no-cache"})
        return response


def add_page(app: FastAPI) -> None:
    """The page itself; it holds nothing that needs a key."""

    own = _Files(directory=_PAGE)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return await own.get_response("index.html", request.scope)

    app.mount("/page", own)
    # The charts' library comes with its Python package.
    app.mount("/plotly", _Files(directory=str(files("plotly") / "package_data")))


def add_dashboard(client: APIRouter, admins: APIRouter, dashboard: Dashboard) -> None:
    @client.get("/v1/dashboard")
    async def data(
        request: Request,
        adapters_at: str = "",
        history_at: float = Query(0.0, ge=0, allow_inf_nan=False),
    ) -> JSONResponse:
        page = await dashboard.page(
            request.state.viewer, adapters_at=adapters_at, history_at=history_at
        )
        return JSONResponse(page, headers={"cache-control": "no-store"})

    @client.get("/v1/history")
    async def history(
        request: Request, step: int = 5, adapter: str | None = None
    ) -> dict[str, Any]:
        points = await dashboard.history(request.state.viewer, step, adapter)
        return {"object": "list", "data": points}

    # It names every adapter, private ones too.
    @admins.get("/metrics")
    async def metrics() -> Response:
        return Response(await dashboard.metrics(), media_type=CONTENT_TYPE)
