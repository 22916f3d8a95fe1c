"""How long a first token takes on a replica, by how many requests wait for theirs.

Prompts that come together are read together, in one step of the engine or in a few; so each of them
waits for all. A line through what streams have waited of late says how long.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

from cluster.means import MovingLine


@dataclass
class Sent:
    """A request on its way to its first token.

    Attributes:
        behind: how many waited for theirs when it was sent; before: how many had been sent ever.
        counts: whether its time says something of the others': no load was in it.
    """

    replica: str
    behind: int
    before: int
    counts: bool
    at: float = field(default_factory=time.monotonic)
    is_waiting: bool = True


class FirstTokens:
    """Of one base model, as one ingress sees it."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._line = MovingLine()

    def takes_s(self, replica: str) -> float:
        """Seconds that few would exceed who are sent there now; 0 before the first stream."""
        return self._line.above(self._waiting[replica] + 1)

    def send(self, replica: str, *, counts: bool) -> Sent:
        """A request goes to a replica."""
        sent = Sent(replica, self._waiting[replica], self._sent[replica], counts)
        self._waiting[replica] += 1
        self._sent[replica] += 1
        return sent

    def came(self, sent: Sent) -> None:
        """The first token of a stream is there; only the first call counts."""
        if sent.is_waiting and sent.counts:
            together = sent.behind + self._sent[sent.replica] - sent.before
            self._line.add(together, time.monotonic() - sent.at)
        self.end(sent)

    def end(self, sent: Sent) -> None:
        """It waits no more, whether or not a token came."""
        self._waiting[sent.replica] -= sent.is_waiting
        sent.is_waiting = False
