"""HTTP of the rules: what holds, what shall hold, and what would if it did."""

from typing import Any

from fastapi import APIRouter, Request

from cluster.adapters import Viewer
from cluster.errors import Forbidden, InvalidRequest
from deployments.ingress.bodies import read_json
from deployments.ingress.rules.book import Book
from router.rules.rulebook import Rulebook


def add_rules(admins: APIRouter, book: Book, max_body_bytes: int) -> None:
    @admins.get("/v1/rules")
    async def show() -> dict[str, Any]:
        return book.show()

    @admins.put("/v1/rules")
    async def put(request: Request) -> dict[str, Any]:
        return await book.put(await read_json(request, max_body_bytes))

    @admins.delete("/v1/rules")
    async def reset() -> dict[str, Any]:
        return await book.reset()


def tried(body: dict[str, Any], book: Book, viewer: Viewer) -> tuple[Rulebook | None, Viewer]:
    """The rules that a body of `/v1/route` wants tried, and the tenant as whom; both are for those
    who see all.

    Raises:
        Forbidden, InvalidRequest
    """
    rules, tenant = body.get("rules"), body.get("tenant")
    for field, value in (("rules", rules), ("tenant", tenant)):
        if value is not None and not viewer.sees_all:
            raise Forbidden(f"{field}: only admins may try rules, and tenants", param=field)
    if tenant is not None and not isinstance(tenant, str):
        raise InvalidRequest("tenant: it must be a string", param="tenant")
    whose = viewer if tenant is None else Viewer(owner=tenant)
    return None if rules is None else book.tried(rules), whose
