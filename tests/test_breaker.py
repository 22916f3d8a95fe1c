"""When an endpoint elsewhere is left alone, in virtual time."""

import pytest

from cluster.errors import EndpointUnavailable, Overloaded
from deployments.engines.endpoint.breaker import Breaker, Failed
from deployments.engines.endpoint.limits import Bucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(3, clock, jitter=lambda: 1.0)


def fail(breaker, error=None, **more) -> None:
    breaker.check()
    with pytest.raises(Failed), breaker.trying():
        raise Failed(error or EndpointUnavailable("far: no answer"), **more)


def succeed(breaker) -> None:
    breaker.check()
    with breaker.trying():
        pass


def test_it_opens_after_failures_in_a_row_for_twice_as_long_each_time(breaker, clock):
    fail(breaker)
    fail(breaker)
    succeed(breaker)
    fail(breaker)
    fail(breaker)
    assert breaker.trouble == "", "a success has begun the count anew"
    fail(breaker)
    for alone_s in (1, 2, 4, 8, 16, 32, 60, 60):
        assert breaker.wait_s == alone_s
        assert "far: no answer" in breaker.trouble
        with pytest.raises(EndpointUnavailable) as refused:
            breaker.check()
        assert refused.value.retry_after_s == alone_s
        clock.now += alone_s
        assert breaker.trouble == ""
        fail(breaker)
    clock.now += 60
    succeed(breaker)
    assert not breaker.is_open
    fail(breaker)
    assert breaker.wait_s == 0


def test_what_is_about_one_request_alone_does_not_count(breaker):
    for _ in range(9):
        fail(breaker, counts=False)
    assert not breaker.is_open


def test_only_one_request_tries_an_open_one(breaker, clock):
    for _ in range(3):
        fail(breaker)
    clock.now += 1
    with breaker.trying(), pytest.raises(EndpointUnavailable):
        breaker.check()
    breaker.check()


def test_whoever_leaves_while_it_is_tried_lets_the_next_one_try(breaker, clock):
    for _ in range(3):
        fail(breaker)
    clock.now += 1
    with pytest.raises(GeneratorExit), breaker.trying():
        raise GeneratorExit
    assert breaker.is_open
    breaker.check()


def test_what_it_asks_for_holds_whatever_the_count(breaker, clock):
    fail(breaker, Overloaded("far: at its limit"), told_s=30.0)
    assert breaker.wait_s == 30
    with pytest.raises(Overloaded) as refused:
        breaker.check()
    assert refused.value.headers() == {"retry-after": "30"}
    clock.now += 30
    succeed(breaker)


def test_it_is_not_believed_for_ever(breaker):
    fail(breaker, told_s=1e9)
    assert breaker.wait_s == 600


def test_a_bucket_gives_so_many_a_minute_and_a_short_burst(clock):
    bucket = Bucket(60, clock)
    assert [bucket.take(1) for _ in range(3)] == [0, 1, 2]
    bucket.take(-1)
    clock.now += 2
    assert bucket.take(1) == 0
    clock.now += 3600
    assert [bucket.take(1) for _ in range(7)] == [0, 0, 0, 0, 0, 0, 1]


def test_a_bucket_without_a_limit_gives_everything(clock):
    bucket = Bucket(None, clock)
    assert {bucket.take(1e9) for _ in range(3)} == {0}
