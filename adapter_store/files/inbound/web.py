"""Web servers: what they have, over redirects that stay within the allowed kinds of places."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import httpx

from cluster.errors import AdapterRefused

_MOST_HOPS = 5
_SILENCE_S = 30.0
_PAGE_BYTES = 1 << 20
_LINK = re.compile(r"""href=["']([^"'?#]{1,300})["']""", re.IGNORECASE)


class WebSite:
    """Over HTTP; which addresses may be connected to is for :mod:`.guard` to say.

    Args:
        schemes: of the first place, and of those that a redirect leads to.
    """

    def __init__(self, schemes: Sequence[str]) -> None:
        self._schemes = schemes
        # Proxies and credentials of the machine are not for strangers' servers. Of a redirect to
        # another host, httpx drops what the first one was given.
        self._client = httpx.Client(
            follow_redirects=True,
            max_redirects=_MOST_HOPS,
            timeout=_SILENCE_S,
            trust_env=False,
            headers={"accept-encoding": "identity"},
            event_hooks={"request": [self._check]},
        )

    @contextlib.contextmanager
    def opened(self, url: str) -> Iterator[tuple[Iterator[bytes], int | None]]:
        """The bytes, and how many they should be; raises FileNotFoundError, PermissionError."""
        try:
            with self._client.stream("GET", url) as answer:
                if answer.status_code in (404, 410):
                    raise FileNotFoundError(url)
                if answer.status_code in (401, 403):
                    raise PermissionError(answer.status_code, answer.reason_phrase, url)
                answer.raise_for_status()
                length = answer.headers.get("content-length", "")
                yield answer.iter_bytes(), int(length) if length.isdecimal() else None
        except httpx.TooManyRedirects as e:
            raise AdapterRefused(
                f"{url} leads on more than {_MOST_HOPS} times; name the last place", param="source"
            ) from e
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as e:
            raise AdapterRefused(f"{url}: {e}", param="source") from e

    def listing(self, url: str) -> list[str]:
        """Names on the page of a folder, as web servers make one."""
        page = b""
        with self.opened(f"{url}/") as (parts, _):
            for part in parts:
                page += part
                if len(page) > _PAGE_BYTES:
                    break
        links = _LINK.findall(page.decode(errors="replace"))
        return [link.rstrip("/").rpartition("/")[2] for link in links]

    def _check(self, request: httpx.Request) -> None:
        scheme = request.url.scheme
        if scheme not in self._schemes:
            raise AdapterRefused(
                f"source leads to {scheme}://{request.url.host}, and {scheme} is no kind of source "
                f"here; allowed are {', '.join(self._schemes)} (store.sources)",
                param="source",
            )
