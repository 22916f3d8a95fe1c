"""Counts on their way through the store, and back as curves."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from adapter_store.telemetry import STEPS, TelemetryStore
from cluster.state import Happening
from deployments import metrics
from deployments.history import History, quantile
from deployments.telemetry import Growth, Telemetry, adapter_of, joined

HOUR, DAY = STEPS


@pytest.fixture
async def kept(store_settings):
    it = TelemetryStore(store_settings)
    yield it
    await it.close()


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
    assert growth.since_last(registry_with(2).collect()) == {
        "roundhouse_requests_total|200|cron": 4.0
    }
    assert growth.since_last(registry_with(2).collect()) == {}
    assert growth.since_last(registry_with(5).collect()) == {
        "roundhouse_requests_total|200|cron": 6.0
    }


def test_a_counter_that_began_anew_counts_from_nothing():
    growth = Growth()
    growth.since_last(registry_with(9).collect())
    assert growth.since_last(registry_with(1).collect()) == {
        "roundhouse_requests_total|200|cron": 2.0
    }


def test_an_adapter_that_is_called_like_another_label_is_not_mistaken():
    assert adapter_of("roundhouse_adapter_loads_total|ok") is None
    assert adapter_of("roundhouse_requests_total|200|ok") == "ok"
    assert adapter_of("roundhouse_output_tokens_total|") == ""


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
async def test_one_process_tells_the_metrics_of_all_that_live(store_settings):
    one, two = Telemetry(store_settings, "one"), Telemetry(store_settings, "two")
    await two._report()
    await two.store.put_metrics("dead", "# HELP z Z.\n", for_s=0.05)
    await asyncio.sleep(0.1)
    text = await one.cluster_exposition()
    assert 'process="one"' in text
    assert 'process="two"' in text
    assert "# HELP z" not in text
    assert text.count("# HELP roundhouse_requests_total") == 1
    await one.stop()
    await two.stop()


def test_metrics_name_a_bounded_number_of_adapters():
    labels = metrics.AdapterLabels(most=3)
    for i in range(10):
        name = labels.use(f"bounded-{i}")
        metrics.tokens.labels("m", name).inc()
    there = {
        s.labels["adapter"]
        for s in metrics.tokens.collect()[0].samples
        if s.labels["adapter"].startswith("bounded-")
    }
    assert there == {"bounded-7", "bounded-8", "bounded-9"}


# -- history ------------------------------------------------------------------------------------


@pytest.mark.redis
async def test_what_processes_count_adds_up_in_the_bucket_of_its_time(kept):
    field = "roundhouse_requests_total|200|cron"
    at = HOUR.bucket(time.time())
    for _ in range(2):
        await kept.add_counts(at + 1, {HOUR: {field: 1.5}, DAY: {}})
    await kept.add_counts(at - HOUR.width_s, {HOUR: {field: 7}})
    found = await kept.counts(HOUR, [at - HOUR.width_s, at])
    assert found == {at - HOUR.width_s: {field: 7.0}, at: {field: 3.0}}


@pytest.mark.redis
async def test_the_history_is_bounded_in_time(kept):
    await kept.add_counts(time.time(), {HOUR: {"x": 1}, DAY: {"x": 1}})
    key = kept._keys.history(HOUR.width_s, HOUR.bucket(time.time()))
    assert 0 < await kept._server.redis.ttl(key) <= HOUR.keep_s + 2 * HOUR.width_s


@pytest.mark.redis
async def test_curves_say_what_was_counted(kept):
    at = HOUR.bucket(time.time()) - 60
    counts = {
        "roundhouse_requests_total|200|cron": 8,
        "roundhouse_requests_total|503|cron": 2,
        "roundhouse_requests_total|200|": 5,
        "roundhouse_adapter_lookups_total|slot|cron": 6,
        "roundhouse_adapter_lookups_total|host|cron": 3,
        "roundhouse_adapter_lookups_total|node|cron": 1,
        "roundhouse_adapter_loads_total|ok": 2,
        "roundhouse_adapter_load_seconds_sum": 0.5,
        "roundhouse_time_to_first_token_seconds_bucket|0.1|cron": 5,
        "roundhouse_time_to_first_token_seconds_bucket|0.2|cron": 10,
        "roundhouse_time_to_first_token_seconds_bucket|+Inf|cron": 10,
    }
    await kept.add_counts(at, {HOUR: counts})
    history = History(kept)
    (point,) = await history.points(HOUR, after=0)
    assert (point["requests"], point["errors"], point["rate"]) == (15, 2, 3)
    assert point["hit_ratio"] == pytest.approx(0.9)
    assert (point["loads"], point["load_s"]) == (2, 0.25)
    assert point["ttft_p50_s"] == pytest.approx(0.1)
    (of_one,) = await history.points(HOUR, after=0, adapter="cron")
    assert (of_one["requests"], of_one["loads"]) == (10, 0)
    assert (await history.traffic())["cron"]["hit_ratio"] == pytest.approx(0.9)
    assert await history.points(HOUR, after=at) == []


@pytest.mark.redis
async def test_settled_buckets_are_read_once_and_new_ones_again(kept):
    field = "roundhouse_requests_total|200|"
    history = History(kept)
    now = time.time()
    await kept.add_counts(now - 100, {HOUR: {field: 1}})
    await kept.add_counts(now, {HOUR: {field: 1}})
    assert [p["requests"] for p in await history.points(HOUR, after=0)] == [1, 1]
    await kept.add_counts(now - 100, {HOUR: {field: 1}})
    await kept.add_counts(now, {HOUR: {field: 1}})
    assert [p["requests"] for p in await history.points(HOUR, after=0)] == [1, 2]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_is(values, q):
    registry = CollectorRegistry()
    histogram = Histogram("h", "x", buckets=(1, 2, 5, 10), registry=registry)
    for value in values:
        histogram.observe(value)
    bounds = {
        s.labels["le"]: s.value for s in next(iter(registry.collect())).samples if "le" in s.labels
    }
    found = quantile(q, bounds)
    exact = sorted(values)[max(0, min(len(values) - 1, int(-(-q * len(values) // 1)) - 1))]
    edges = [0, 1, 2, 5, 10, float("inf")]
    i = next(i for i in range(1, len(edges)) if exact <= edges[i])
    assert edges[i - 1] <= found <= min(edges[i], 10)


def test_nothing_has_no_quantile():
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {"1": 0.0, "+Inf": 0.0}) is None


# -- journal ------------------------------------------------------------------------------------


@pytest.mark.redis
async def test_the_journal_is_read_newest_first(kept):
    for text in ("first", "second"):
        await kept.note([Happening(at=1.0, kind="adapter", subject="cron", text=text)])
    assert [h.text for h in await kept.journal(10)] == ["second", "first"]
    assert [h.text for h in await kept.journal(1)] == ["second"]
