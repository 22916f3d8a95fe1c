"""What happened since the journal was last written, and what it is told from."""

from adapter_store.catalogue import Catalogue, Changes
from adapter_store.telemetry import TelemetryStore
from cluster.adapters import Adapter
from cluster.errors import StoreUnavailable
from cluster.members import Replica, Report
from cluster.plans import Happening
from deployments.planner.journal import adapter_news, member_news

# Happenings that one who does not lead remembers, for should it have to.
_BACKLOG = 20


class News:
    """Gathered by every planner, written by the one that leads."""

    def __init__(self, journal: TelemetryStore, catalogue: Catalogue) -> None:
        self._journal = journal
        self._catalogue = catalogue
        self._news: list[Happening] = []
        self._known: dict[str, Adapter] = {}
        self._members: list[Report] = []
        catalogue.on_change(self._read)

    def start(self, members: list[Report]) -> None:
        """What was there before is no news."""
        self._known = dict(self._catalogue.adapters)
        self._members = members
        self._news.clear()

    def look(self, members: list[Report]) -> None:
        """See who is there now."""
        had, has = (any(isinstance(m, Replica) for m in of) for of in (self._members, members))
        if had and not has:
            return  # not everybody at once: the store has lost their leases for a moment
        self._news += member_news(self._members, members, self._known)
        self._members = members

    def leave_to_others(self) -> None:
        """The one that leads writes them; should it be gone, these are what it had no time for."""
        self._news = self._news[-_BACKLOG:]

    async def write(self) -> None:
        """Raises StoreUnavailable; they are kept for the next time."""
        news, self._news = self._news, []
        if not news:
            return
        try:
            await self._journal.note(news)
        except StoreUnavailable:
            self._news = news + self._news
            raise

    async def _read(self, changes: Changes) -> None:
        self._news += adapter_news(self._known, changes)
        self._known |= {name: adapter for name, adapter in changes.items() if adapter is not None}
        for name in [name for name, adapter in changes.items() if adapter is None]:
            self._known.pop(name, None)
