"""A small HTTP client of the endpoint, for the command line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from cluster.errors import RoundhouseError, Unavailable

ROUTING_HEADERS = (
    "x-roundhouse-adapter",
    "x-roundhouse-version",
    "x-roundhouse-replica",
    "x-roundhouse-residency",
    "x-roundhouse-route",
)


class EndpointError(RoundhouseError):
    """The endpoint answered with an error; the message is its own."""


class Client:
    """Calls one endpoint; errors come back as :class:`EndpointError` or :class:`Unavailable`."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 120) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        self._url = url

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._call("GET", path, params=params)

    def post(self, path: str, body: dict[str, Any], **params: Any) -> dict[str, Any]:
        return self._call("POST", path, json=body, params=params)

    def put(self, path: str, body: dict[str, Any], **params: Any) -> dict[str, Any]:
        return self._call("PUT", path, json=body, params=params)

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path)

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """The items of a listing, page after page."""
        cursor = ""
        while cursor is not None:
            page = self.get(path, cursor=cursor, limit=1000)
            yield from page["data"]
            cursor = page["next"]

    def stream_chat(self, body: dict[str, Any]) -> Iterator[dict[str, str] | str]:
        """The routing headers first, then the pieces of the answer."""
        with (
            self._reached(),
            self._http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise _error(answer)
            yield {h: answer.headers.get(h, "") for h in ROUTING_HEADERS}
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise EndpointError(f"the answer broke off: {event['error']['message']}")
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""

    def _call(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        with self._reached():
            answer = self._http.request(method, path, **kwargs)
        if answer.is_error:
            raise _error(answer)
        return answer.json()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn transport failures into a sentence that says what to do."""
        try:
            yield
        except httpx.ConnectError as e:
            raise Unavailable(
                f"nothing answers at {self._url}; start it with `roundhouse up`, or set --url"
            ) from e
        except httpx.TransportError as e:
            raise Unavailable(f"{self._url} broke off: {e!r}") from e


def _error(answer: httpx.Response) -> EndpointError:
    try:
        error = answer.json()["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:300]
    return EndpointError(f"HTTP {answer.status_code}: {message}")
