"""Means that follow what changes."""

import pytest

from cluster.means import MovingLine


def line(*points: tuple[float, float]) -> MovingLine:
    found = MovingLine()
    for x, y in points:
        found.add(x, y)
    return found


@pytest.mark.parametrize(
    ("points", "x", "y"),
    [
        ([], 3, 0),
        ([(1, 0.3)], 4, 1.2),  # one point says nothing of the slope: through 0
        ([(1, 0.3), (11, 1.3)] * 50, 6, 0.8),
        ([(1, 1.0), (5, 0.2)] * 50, 9, 0.6),  # never falling
        ([(2, 0.1), (3, 3.0)] * 50, 1, 0.62),  # nor below 0 at 0
    ],
)
def test_the_line_goes_through_the_points(points, x, y):
    assert line(*points).at(x) == pytest.approx(y, rel=0.05)


def test_it_follows_what_changes():
    assert line(*[(2, 9.0), (4, 18.0)] * 50, *[(2, 1.0), (4, 2.0)] * 50).at(3) == pytest.approx(
        1.5, rel=0.05
    )


def test_few_points_are_above_its_band():
    found = line(*[(1, 0.1), (1, 0.2), (1, 0.3)] * 40)
    assert 0.3 < found.above(1) < 0.4
    assert line(*[(2, 1.0)] * 50).above(2) == pytest.approx(1.0)
    assert MovingLine().above(1) == 0
