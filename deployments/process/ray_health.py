"""Whether Ray's own server (GCS) answers: without it nothing is started or replaced any more, and
after a minute Ray's processes end themselves."""

import asyncio
import logging

from cluster.tasks import Background

logger = logging.getLogger(__name__)

_PATIENCE_S = 1
_EVERY_S = 1.0
# One answer may be late.
_ENOUGH = 2


async def gcs_answers() -> bool:
    """Ask it, from a process that is connected to it. Whatever the asking fails of, there is no
    answer."""
    from ray._private.worker import global_worker
    from ray.exceptions import RpcError

    try:
        await global_worker.gcs_client.async_check_alive([], timeout=_PATIENCE_S)
    except RpcError:
        return False
    except Exception:  # Ray fails in ways of its own
        logger.warning("Ray's GCS could not be asked", exc_info=True)
        return False
    return True


class RayHealth:
    """Asks in the background, so that nobody waits who wants to know."""

    def __init__(self) -> None:
        self._background = Background()
        self._missed = 0

    async def start(self) -> None:
        self._background.start("ray health", self._ask_for_ever())

    async def stop(self) -> None:
        await self._background.stop()

    def check(self) -> None:
        """Raise what ended the asking, so that a health check sees it."""
        self._background.check()

    def missing(self) -> list[str]:
        """What of Ray does not answer, in words."""
        return ["Ray's GCS, which does not answer"] if self._missed >= _ENOUGH else []

    async def _ask_for_ever(self) -> None:
        while True:
            self._missed = 0 if await gcs_answers() else self._missed + 1
            await asyncio.sleep(_EVERY_S)
