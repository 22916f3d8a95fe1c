"""Means that follow what changes. Pure."""

# Of x, below which all points are at one.
_NO_SPREAD = 1e-9


class MovingMean:
    """A mean in which each new value counts for `newest`, and older ones ever less; 0 before the
    first."""

    def __init__(self, newest: float = 0.1) -> None:
        self._newest = newest
        self.value = 0.0

    def add(self, value: float) -> None:
        self.value += self._newest * (value - self.value) if self.value else value


class MovingLine:
    """The line y = a + b x through what was seen, by least squares, older points counting less.

    For x above 0. a and b are never below 0; of points at one x, a is 0.
    """

    def __init__(self, keep: float = 0.95) -> None:
        """`keep`: of a point's weight when another one comes."""
        self._keep = keep
        self._n = self._x = self._y = self._xx = self._xy = self._off = 0.0

    def add(self, x: float, y: float) -> None:
        off = abs(y - self.at(x)) if self._n else 0.0
        self._off = self._keep * self._off + off
        self._n = self._keep * self._n + 1
        self._x = self._keep * self._x + x
        self._y = self._keep * self._y + y
        self._xx = self._keep * self._xx + x * x
        self._xy = self._keep * self._xy + x * y

    def above(self, x: float) -> float:
        """y there that few points are above: twice the mean deviation over the line."""
        return self.at(x) + 2 * self._off / self._n if self._n else 0.0

    def at(self, x: float) -> float:
        """y there; 0 before the first point."""
        if not self._n:
            return 0.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        through_0 = mean_y / mean_x
        spread = self._xx / self._n - mean_x**2
        if spread < _NO_SPREAD:
            return through_0 * x
        slope = (self._xy / self._n - mean_x * mean_y) / spread
        return mean_y + min(max(slope, 0.0), through_0) * (x - mean_x)
