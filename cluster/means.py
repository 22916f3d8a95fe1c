"""Means that follow what changes. Pure."""


class MovingMean:
    """A mean in which each new value counts for `newest`, and older ones ever less; 0 before the
    first."""

    def __init__(self, newest: float = 0.1) -> None:
        self._newest = newest
        self.value = 0.0

    def add(self, value: float) -> None:
        self.value += self._newest * (value - self.value) if self.value else value
