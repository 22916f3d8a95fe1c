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
        ended: of those sent there before, how many waited no more.
        counts: whether its time says something of the others': no load was in it.
    """

    replica: str
    ended: int
    counts: bool
    at: float = field(default_factory=time.monotonic)
    is_waiting: bool = True


class FirstTokens:
    """Of one base model, as one ingress sees it."""

    def __init__(self) -> None:
        # All that were ever sent to a replica, and those of them that wait no more.
        self._sent: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._line = MovingLine()

    def takes_s(self, replica: str) -> float:
        """Seconds that few would exceed who are sent there now; 0 before the first stream."""
        return self._line.above(self._sent[replica] - self._ended[replica] + 1)

    def send(self, replica: str, *, counts: bool) -> Sent:
        """A request goes to a replica."""
        self._sent[replica] += 1
        return Sent(replica, self._ended[replica], counts)

    def came(self, sent: Sent) -> None:
        """The first token of a stream is there; only the first call counts."""
        if sent.is_waiting and sent.counts:
            # Those before it, and those that came while it waited.
            together = self._sent[sent.replica] - sent.ended
            self._line.add(together, time.monotonic() - sent.at)
        self.end(sent)

    def end(self, sent: Sent) -> None:
        """It waits no more, whether or not a token came."""
        self._ended[sent.replica] += sent.is_waiting
        sent.is_waiting = False
