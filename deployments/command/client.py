"""A small HTTP client of the endpoint, for the command line."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from cluster.addresses import is_loopback
from cluster.errors import RoundhouseError, Unavailable

ROUTING_HEADERS = (
    "x-roundhouse-adapter",
    "x-roundhouse-version",
    "x-roundhouse-replica",
    "x-roundhouse-residency",
    "x-roundhouse-route",
)

_PART_BYTES = 8 * 2**20
_UPLOAD_TRIES = 5
_POLL_S = 1.0


class EndpointError(RoundhouseError):
    """The endpoint answered with an error; the message is its own."""


class Client:
    """Calls one endpoint; errors come back as :class:`EndpointError` or :class:`Unavailable`."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 120) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # What goes to this machine goes by no proxy, whatever the environment says.
        is_far = not is_loopback(httpx.URL(url).host)
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, trust_env=is_far
        )
        self._url = url

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._call("GET", path, params=params)

    def post(
        self,
        path: str,
        body: dict[str, Any],
        headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        return self._call("POST", path, json=body, headers=headers, params=params)

    def put(self, path: str, body: dict[str, Any], **params: Any) -> dict[str, Any]:
        return self._call("PUT", path, json=body, params=params)

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("PATCH", path, json=body)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when the cluster is ready; with 0 s, at once, ready or not.

        Raises:
            Unavailable: it is not within `timeout_s`; says what it waits for.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                self.get("/readyz")
                return
            except (EndpointError, Unavailable) as e:
                if time.monotonic() + _POLL_S >= deadline:
                    raise Unavailable(f"not ready within {timeout_s:.0f} s: {e.message}") from e
            time.sleep(_POLL_S)

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """The items of a listing, page after page."""
        cursor = ""
        while cursor is not None:
            page = self.get(path, cursor=cursor, limit=1000, **params)
            yield from page["data"]
            cursor = page["next"]

    def follow(
        self,
        method: str,
        path: str,
        body: dict[str, Any],
        tell: Callable[[dict[str, Any]], None],
        **params: Any,
    ) -> dict[str, Any]:
        """Make a change and hear of its progress; returns the adapter as it is then."""
        headers = {"accept": "text/event-stream"}
        with (
            self._reached(),
            self._http.stream(
                method, path, json=body, params=params, headers=headers, timeout=None
            ) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise _error(answer)
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                if event["event"] == "error":
                    raise EndpointError(f"HTTP {event['status']}: {event['error']['message']}")
                if event["event"] == "result":
                    adapter: dict[str, Any] = event["adapter"]
                    return adapter
                tell(event)
        raise Unavailable(f"{self._url} broke off before it had an answer")

    def upload(self, file: Path, filename: str, tell: Callable[[int], None]) -> str:
        """Send a file, by tus 1.0; goes on where it broke off. Returns the source it makes."""
        length = file.stat().st_size
        headers = {
            "upload-length": str(length),
            "upload-metadata": f"filename {base64.b64encode(filename.encode()).decode()}",
        }
        begun = self._call("POST", "/v1/uploads", headers=headers)
        path, offset, failures = f"/v1/uploads/{begun['id']}", 0, 0
        with file.open("rb") as data:
            while offset < length:
                data.seek(offset)
                try:
                    if failures:
                        offset = self._offset(path)
                        data.seek(offset)
                    offset = self._append(path, offset, data.read(_PART_BYTES))
                    failures = 0
                except Unavailable:
                    failures += 1
                    if failures > _UPLOAD_TRIES:
                        raise
                    time.sleep(failures)
                tell(offset)
        source: str = begun["source"]
        return source

    def send_form(self, path: str, filename: str, data: IO[bytes], **fields: str) -> dict[str, Any]:
        """Send a file as browsers do; `data` is read as it goes."""
        return self._call("POST", path, files={"file": (filename, data)}, data=fields)

    def save(self, path: str, target: Path) -> None:
        """Write what is there into a file."""
        with self._reached(), self._http.stream("GET", path) as answer:
            if answer.is_error:
                answer.read()
                raise _error(answer)
            with target.open("wb") as out:
                for piece in answer.iter_bytes():
                    out.write(piece)

    def _append(self, path: str, offset: int, part: bytes) -> int:
        headers = {
            "upload-offset": str(offset),
            "content-type": "application/offset+octet-stream",
        }
        with self._reached():
            answer = self._http.patch(path, content=part, headers=headers)
        return _offset_of(answer)

    def _offset(self, path: str) -> int:
        with self._reached():
            return _offset_of(self._http.head(path))

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
        found: dict[str, Any] = answer.json()
        return found

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


def _offset_of(answer: httpx.Response) -> int:
    if answer.is_server_error:
        raise Unavailable(_error(answer).message)
    if answer.is_error:
        raise _error(answer)
    return int(answer.headers["upload-offset"])


def _error(answer: httpx.Response) -> EndpointError:
    try:
        error = answer.json()["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:300]
    return EndpointError(f"HTTP {answer.status_code}: {message}")
