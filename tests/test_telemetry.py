"""Counts on their way through the store, and back as curves."""

import asyncio
import math
import time
from collections import Counter as Counts

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from adapter_store.telemetry import STEPS
from cluster.errors import StoreUnavailable
from cluster.plans import Happening
from deployments.ingress.dashboard.history import History, quantile
from deployments.process import metrics
from deployments.process.ray_metrics import summed
from deployments.process.telemetry import PERIOD_S, Growth, Telemetry, joined, nowhere, parts_of

HOUR, DAY = STEPS


@pytest.fixture
async def kept(store):
    return store.telemetry


# -- what has grown -----------------------------------------------------------------------------


def registry_with(requests: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    counter = Counter(
        "roundhouse_requests_total",
        "x",
        ("model", "adapter", "route", "status"),
        registry=registry,
    )
    counter.labels("m", "cron", "auto", "200").inc(requests)
    counter.labels("n", "cron", "explicit", "200").inc(requests)
    return registry


def test_only_what_has_grown_is_told_and_unneeded_labels_are_added_up():
    growth = Growth()
    assert growth.since_last(registry_with(2).collect()) == {"requests|200|cron": 4.0}
    assert growth.since_last(registry_with(2).collect()) == {}
    assert growth.since_last(registry_with(5).collect()) == {"requests|200|cron": 6.0}


def test_a_counter_that_began_anew_counts_from_nothing():
    growth = Growth()
    growth.since_last(registry_with(9).collect())
    assert growth.since_last(registry_with(1).collect()) == {"requests|200|cron": 2.0}


def test_a_histogram_is_told_by_what_fell_into_each_bucket():
    registry, growth = CollectorRegistry(), Growth()
    name, labels = "roundhouse_time_to_first_token_seconds", ("model", "adapter")
    histogram = Histogram(name, "x", labels, buckets=(1, 2, 5), registry=registry)
    for adapter, seconds in (("a", 0.5), ("a", 1.5), ("b", 9.0)):
        histogram.labels("m", adapter).observe(seconds)
    assert growth.since_last(registry.collect()) == {
        "ttft|1.0|a": 1.0,
        "ttft|2.0|a": 1.0,
        "ttft|+Inf|b": 1.0,
    }
    histogram.labels("m", "a").observe(1.2)
    assert growth.since_last(registry.collect()) == {"ttft|2.0|a": 1.0}


def test_an_adapter_that_is_called_like_another_label_is_not_mistaken():
    assert parts_of("loads|ok|cron") == ("loads", "ok", "cron")
    assert parts_of("choices|base") == ("choices", "base", None)
    assert parts_of("requests|200|ok") == ("requests", "200", "ok")
    assert parts_of("tokens|") == ("tokens", "", "")


# -- metrics ------------------------------------------------------------------------------------


def test_expositions_of_several_processes_become_one():
    a = '# HELP x_total X.\n# TYPE x_total counter\nx_total{process="a"} 1.0\n'
    b = (
        '# HELP y Y.\n# TYPE y gauge\ny{process="b"} 2.0\n'
        '# HELP x_total X.\n# TYPE x_total counter\nx_total{process="b"} 3.0\n'
    )
    families = list(text_string_to_metric_families(joined([a, b])))
    assert [f.name for f in families] == ["x", "y"]
    assert [s.labels["process"] for s in families[0].samples] == ["a", "b"]


@pytest.mark.redis
async def test_one_process_tells_the_metrics_of_all_that_live(kept):
    one, two = (Telemetry(kept, who, nowhere) for who in ("one", "two"))
    await two.report()
    await kept.put_metrics("dead", "# HELP z Z.\n", for_s=0.05)
    await asyncio.sleep(0.1)
    text = await one.cluster_exposition()
    assert 'process="one"' in text
    assert 'process="two"' in text
    assert "# HELP z" not in text
    assert text.count("# HELP roundhouse_requests_total") == 1


def test_metrics_name_a_bounded_number_of_adapters_and_lose_no_count():
    now = 0.0
    labels = metrics.AdapterLabels(most=3, clock=lambda: now)

    def counts() -> dict[str, float]:
        samples = metrics.tokens.collect()[0].samples
        return {s.labels["adapter"]: s.value for s in samples if s.labels["model"] == "bounded"}

    for i in range(10):
        metrics.tokens.labels("bounded", labels.use(f"bounded-{i}")).inc()
    assert counts() == {"bounded-0": 1, "bounded-1": 1, "bounded-2": 1, metrics.OTHER: 7}
    labels.retire(idle_s=60)
    assert labels.use("new") == metrics.OTHER, "all three were asked for of late"
    now = 61.0
    labels.use("bounded-0")
    labels.use("bounded-1")
    labels.retire(idle_s=60)
    assert "bounded-2" not in counts()
    assert labels.use("new") == "new"


@pytest.mark.redis
async def test_metrics_are_read_while_the_registry_changes(kept):
    """Readings are made in a thread, and requests go on."""
    telemetry = Telemetry(kept, "me", nowhere)
    reading = asyncio.create_task(telemetry.exposition())
    for i in range(2000):
        metrics.tokens.labels("racing", str(i)).inc()
        if i % 100 == 0:
            await asyncio.sleep(0)
    await reading
    metrics.tokens.remove_by_labels({"model": "racing"})


def test_rays_exporter_gets_sums_over_adapters():
    registry = CollectorRegistry()
    counter = Counter("x_total", "X.", ("model", "adapter"), registry=registry)
    for i in range(5):
        counter.labels("m", f"a{i}").inc(2)
    (family,) = registry.collect()
    assert summed(family) == {("x_total", (("model", "m"),)): 10.0}


# -- history ------------------------------------------------------------------------------------


@pytest.mark.redis
async def test_what_processes_count_adds_up_in_the_bucket_of_its_time(kept):
    field = "requests|200|cron"
    at = HOUR.bucket(time.time())
    for who in ("one", "two"):
        await kept.add_counts(who, 0, at + 1, {HOUR: {field: 1.5}, DAY: {}})
    await kept.add_counts("one", 1, at - HOUR.width_s, {HOUR: {field: 7}})
    found = await kept.counts(HOUR, [at - HOUR.width_s, at])
    assert found == {at - HOUR.width_s: {field: 7.0}, at: {field: 3.0}}


@pytest.mark.redis
async def test_what_was_added_is_not_added_again(kept):
    at = HOUR.bucket(time.time())
    for _ in range(3):
        await kept.add_counts("one", 5, at, {HOUR: {"tokens|": 1}})
    assert await kept.counts(HOUR, [at]) == {at: {"tokens|": 1.0}}


@pytest.mark.redis
async def test_counts_wait_for_the_store_and_keep_their_time(kept, monkeypatch):
    now = time.time() - 60
    counted_in = HOUR.bucket(now - PERIOD_S / 2)
    telemetry = Telemetry(kept, "waits", nowhere, clock=lambda: now)
    await telemetry.start()
    metrics.tokens.labels("waits", "").inc(3)

    async def away(*_):
        raise StoreUnavailable("away")

    with monkeypatch.context() as m:
        m.setattr(kept, "add_counts", away)
        with pytest.raises(StoreUnavailable):
            await telemetry.report()
    now += 30
    await telemetry.report()
    found = await kept.counts(HOUR, [counted_in, HOUR.bucket(now - PERIOD_S / 2)])
    assert [counts.get("tokens|") for counts in found.values()] == [3.0, None]
    await telemetry.stop()


@pytest.mark.redis
async def test_reports_at_once_tell_everything_once(kept):
    now = time.time()
    telemetry = Telemetry(kept, "twice", nowhere, clock=lambda: now)
    await telemetry.start()
    metrics.tokens.labels("twice", "").inc(2)
    await asyncio.gather(*(telemetry.report() for _ in range(4)))
    (counts,) = (await kept.counts(HOUR, [HOUR.bucket(now - PERIOD_S / 2)])).values()
    assert counts["tokens|"] == 2.0
    await telemetry.stop()


@pytest.mark.redis
async def test_the_history_is_bounded_in_time(kept, store):
    await kept.add_counts("one", 0, time.time(), {HOUR: {"tokens|": 1}, DAY: {"tokens|": 1}})
    key = store.server.keys.history(HOUR.width_s, HOUR.bucket(time.time()))
    assert 0 < await store.server.redis.ttl(key) <= HOUR.keep_s + 2 * HOUR.width_s


@pytest.mark.redis
async def test_curves_say_what_was_counted(kept):
    at = HOUR.bucket(time.time()) - 60
    counts = {
        "requests|200|cron": 8,
        "requests|503|cron": 2,
        "requests|200|": 5,
        "lookups|slot|cron": 6,
        "lookups|host|cron": 3,
        "lookups|node|cron": 1,
        "loads|ok|cron": 2,
        "load_s": 0.5,
        "ttft|0.1|cron": 5,
        "ttft|0.2|cron": 5,
        "choices|adapter": 4,
    }
    await kept.add_counts("one", 0, at, {HOUR: counts})
    history = History(kept)
    (point,) = await history.points(HOUR, after=0)
    assert (point["requests"], point["errors"], point["rate"]) == (15, 2, 3)
    assert point["hit_ratio"] == pytest.approx(0.9)
    assert (point["loads"], point["load_s"]) == (2, 0.25)
    assert point["ttft_p50_s"] == pytest.approx(0.1)
    assert point["decisions"] == {"adapter": 4}
    (of_one,) = await history.points(HOUR, after=0, adapter="cron")
    assert (of_one["requests"], of_one["loads"], of_one["decisions"]) == (10, 2, {})
    assert (await history.traffic())["cron"]["hit_ratio"] == pytest.approx(0.9)
    assert await history.points(HOUR, after=at) == []


@pytest.mark.redis
async def test_settled_buckets_are_read_once_and_new_ones_again(kept):
    history = History(kept)
    now = time.time()
    for batch in (0, 1):
        for who, at in (("old", now - 200), ("new", now)):
            await kept.add_counts(who, batch, at, {HOUR: {"requests|200|": 1}})
        found = [p["requests"] for p in await history.points(HOUR, after=0)]
        assert found == [1, 1 + batch]


BOUNDS = (1, 2, 5, 10)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_is(values, q):
    edges = [0, *BOUNDS, float("inf")]
    fell = Counts(str(float(next(e for e in edges[1:] if value <= e))) for value in values)
    found = quantile(q, fell, BOUNDS)
    exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    i = next(i for i in range(1, len(edges)) if exact <= edges[i])
    assert edges[i - 1] <= found <= min(edges[i], 10)


def test_nothing_has_no_quantile():
    assert quantile(0.5, {}, BOUNDS) is None
    assert quantile(0.5, {"1.0": 0.0}, BOUNDS) is None


# -- journal ------------------------------------------------------------------------------------


@pytest.mark.redis
async def test_the_journal_is_read_newest_first(kept):
    for text in ("first", "second"):
        await kept.note([Happening(at=1.0, kind="adapter", subject="cron", text=text)])
    assert [h.text for h in await kept.journal(10)] == ["second", "first"]
    assert [h.text for h in await kept.journal(1)] == ["second"]


@pytest.mark.redis
async def test_the_journal_says_whose_a_thing_is(kept):
    """None, as the release before has it, is not the same as nobody's."""
    for revision in (0, 7):
        for owner in (None, "", "a"):
            news = {"at": 1.0, "kind": "adapter", "subject": "x", "text": f"{revision} {owner}"}
            await kept.note([Happening(**news, owner=owner, revision=revision)])
    assert [h.owner for h in await kept.journal(10)] == ["a", "", None] * 2
