"""Names of adapters: which are taken, and that each works wherever a name is used."""

import asyncio
import itertools
import unicodedata
import uuid
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from adapter_store.keys import Keys
from adapter_store.store import Store
from cluster.adapters import Card
from cluster.errors import InvalidRequest, parse
from cluster.names import from_header, in_header
from cluster.settings import StoreSettings
from deployments.process.telemetry import Growth, parts_of
from tests.conftest import ECHO_FACTS
from tests.test_http import ADMIN_HASH, ADMIN_KEY, CLIENT_HASH, CLIENT_KEY, add, ask, error, world

TAKEN = [
    "cron",
    "a..b",
    "9",
    "org/Name-v1.2",
    "Foo",
    "a_b",
    "a:b|c",
    "two words",
    "Über/Straße",
    "日本語",
    "a?b#c%d&e=f+g",
    "a%2Fb",
    "{a}*[b]",
    "[red]x[/]",
    "<b>&amp;",
    "..a/b..",
    "versions",
    "Versions/rollouts",
    "__proto__",
    "-x",
    "echo:x",
    "e" * 255,
]
REFUSED = [
    ("", "empty"),
    ("e" * 256, "255"),
    ("é" * 128, "256 bytes"),
    ("a\nb", "U+000A"),
    ("a\x00", "U+0000"),
    ("a\u202eb", "U+202E"),
    ("a\u200bb", "U+200B"),
    ("a\ufe0fb", "U+FE0F"),
    ("\u3164", "U+3164"),
    ("\u2800", "U+2800"),
    ("a\u00a0b", "U+00A0"),
    ("a\u2028b", "U+2028"),
    ("\ud800", "U+D800"),
    (" a", "white space"),
    ("a ", "white space"),
    ("e\u0301", "NFC"),
    ("a@1", "'@'"),
    ("a\\b", "backslash"),
    ("/a", "'/'"),
    ("a/", "'/'"),
    ("a//b", "'/'"),
    (".", "'.'"),
    ("a/../b", "'..'"),
    ("a/versions", "'/versions'"),
    ("a/aliases/b", "'/aliases'"),
    ("a/rollout", "'/rollout'"),
    ("a/rollback", "'/rollback'"),
    ("a/derive", "'/derive'"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_is_taken_as_it_is(name):
    assert parse(Card, {"name": name, "base_model": "x"}).name == name


@pytest.mark.parametrize(("name", "why"), REFUSED)
def test_a_name_that_could_mislead_is_refused_with_the_reason(name, why):
    with pytest.raises(InvalidRequest) as refused:
        parse(Card, {"name": name, "base_model": "x"})
    assert refused.value.param == "name"
    assert refused.value.message.startswith("name: ")
    assert why in refused.value.message


def is_taken(name: str) -> bool:
    try:
        parse(Card, {"name": name, "base_model": "x"})
    except InvalidRequest:
        return False
    return True


@given(name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True))
def test_what_was_a_name_before_is_one_still(name):
    assert is_taken(name)


_odd = st.sampled_from("aB1.-_:;,|{}[]()<>*?#%&=+~'\"$! /äñ日€🚂") | st.characters(codec="utf-8")
names = (
    st.text(_odd, min_size=1, max_size=30)
    .map(lambda text: unicodedata.normalize("NFC", text).strip(" /"))
    .filter(is_taken)
)


def keys_of(name: str) -> set[str]:
    keys = Keys("test", "cluster")
    return {keys.adapter(name), keys.driver(name)}


@given(one=names, other=names)
def test_two_names_share_no_key(one, other):
    fixed = {getattr(Keys("test"), k) for k, v in vars(Keys).items() if isinstance(v, property)}
    assert len(keys_of(one)) == 2
    assert not keys_of(one) & fixed
    assert one == other or not keys_of(one) & keys_of(other)


@given(name=names)
def test_a_header_holds_any_name(name):
    value = in_header(name)
    assert value.isascii()
    assert value.isprintable()
    assert from_header(value) == name
    assert value == name or not name.isascii() or not {"%", ","}.isdisjoint(name)


@given(name=names)
def test_the_history_tells_any_name_from_its_separators(name):
    registry, growth = CollectorRegistry(), Growth()
    labels = ("model", "adapter", "route", "status")
    asked = Counter("roundhouse_requests_total", "Asked.", labels, registry=registry)
    asked.labels("echo", name, "explicit", "200").inc()
    (field,) = growth.since_last(registry.collect())
    assert parts_of(field) == ("requests", "200", name)


# -- over HTTP ----------------------------------------------------------------------------------


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


async def call(rh, method: str, path: str, expect: int = 200, **sent):
    answer = await rh.client.request(method, path, **sent)
    assert answer.status_code == expect, answer.text
    return answer.json()


async def lives(rh, name: str, first, second) -> None:
    """All that can be done with one adapter is done by its address."""
    assert (await add(rh, first, name=name)).status_code == 201
    taken = error(await add(rh, first, name=name), 409)["message"]
    at, raw = (f"/v1/adapters/{quote(name, safe=safe)}" for safe in ("", "/"))
    assert f"POST {at}/versions" in taken
    await call(rh, "PUT", raw, json={"source": str(first)})
    await call(rh, "POST", f"{at}/versions", 201, json={"source": str(second)})
    assert len((await call(rh, "GET", f"{raw}/versions"))["data"]) == 2
    await call(rh, "PUT", f"{raw}/aliases/blue", json={"version": 2})
    await call(rh, "DELETE", f"{at}/aliases/blue")
    await call(rh, "POST", f"{raw}/rollback")
    await call(rh, "POST", f"{at}/rollout", json={"gate": False}, params={"wait": True})
    error(await rh.client.patch(f"{raw}/versions", json={}), 405)
    for address in (at, raw):
        assert (await call(rh, "GET", address))["name"] == name
        assert (await call(rh, "PATCH", address, json={"tags": ["x"]}))["tags"] == ["x"]
    model = quote(name, safe="")
    assert (await call(rh, "GET", f"/v1/models/{model}"))["id"] == name
    for asked in (name, f"{name}@2", f"echo:{name}", f"echo|{name}@2"):
        answer = await ask(rh, asked)
        assert answer.json()["model"] == name
        assert from_header(answer.headers["x-roundhouse-adapter"]) == name
    await call(rh, "GET", "/v1/history", params={"adapter": name})
    await call(rh, "DELETE", f"{raw}/versions/1")


async def is_listed(rh, expected: list[str]) -> None:
    """Everywhere, one by one too, in one order."""
    listed, cursor = [], ""
    while cursor is not None:
        page = await call(rh, "GET", "/v1/adapters", params={"limit": 1, "cursor": cursor})
        listed += [adapter["name"] for adapter in page["data"]]
        cursor = page["next"]
    assert listed == sorted(expected)
    models = [model["id"] for model in (await call(rh, "GET", "/v1/models"))["data"]]
    assert models[2:] == listed
    await rh.telemetry.report()
    shown = await call(rh, "GET", "/v1/dashboard")
    assert [row["name"] for row in shown["adapters"]] == listed
    told = text_string_to_metric_families((await rh.client.get("/metrics")).text)
    samples = itertools.chain.from_iterable(family.samples for family in told)
    assert set(expected) <= {sample.labels.get("adapter") for sample in samples}


@pytest.mark.redis
@settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(drawn=["org/Name-v1.2", "a:b|c", "Über/a?b#c%d&e=f+g", "{a}*[b] two"])
@given(drawn=st.lists(names, min_size=4, max_size=4, unique=True))
def test_any_name_lives_a_whole_life(redis_url, prompt_router, make_adapter, tmp_path, drawn):
    async def run() -> None:
        place = StoreSettings(url=redis_url, namespace=f"names-{uuid.uuid4().hex[:12]}")
        async with Store(place) as store:
            await store.registry.put_base_model(ECHO_FACTS)
        async with world(place, prompt_router, tmp_path) as rh:
            for name in drawn:
                await lives(rh, name, make_adapter("first"), make_adapter("second", seed=1))
            await is_listed(rh, drawn)
            for name in drawn:
                await call(rh, "DELETE", f"/v1/adapters/{quote(name, safe='')}")
            assert (await call(rh, "GET", "/v1/adapters"))["data"] == []

    asyncio.run(run())


@pytest.mark.redis
async def test_case_tells_adapters_apart(rh, make_adapter):
    for name in ("foo", "Foo"):
        assert (await add(rh, make_adapter("foo"), name=name)).status_code == 201
    await call(rh, "DELETE", "/v1/adapters/Foo")
    assert (await call(rh, "GET", "/v1/adapters/foo"))["name"] == "foo"
    error(await rh.client.get("/v1/adapters/Foo"), 404)


@pytest.mark.redis
@pytest.mark.parametrize("name", ["a/versions", "a@1", "..", "e\u0301"])
async def test_a_refused_name_is_told_before_anything_is_fetched(rh, name):
    assert error(await add(rh, "/no/such/folder", name=name), 400)["param"] == "name"


@pytest.mark.redis
async def test_a_name_that_stands_for_no_adapter_is_not_given(rh, make_adapter):
    for name in ("auto", "base", "(other)", "(unknown)", "echo"):
        assert error(await add(rh, make_adapter(), name=name), 400)["param"] == "name"


@pytest.mark.redis
async def test_an_address_is_one_of_what_there_is(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    redirected = await rh.client.get("/v1/adapters/cron/")
    assert redirected.headers["location"].endswith("/v1/adapters/cron")
    for path in ("/v1/adapters//cron", "/v1/adapters/cron/versions/1/x", "/v1/adapters/a%2F%2Fb"):
        error(await rh.client.get(path), 404)
    error(await rh.client.delete("/v1/adapters/cron/versions"), 405)
    assert (await call(rh, "GET", "/v1/adapters/cron"))["name"] == "cron"


@pytest.mark.redis
async def test_a_name_in_a_header_of_ones_own(rh, make_adapter):
    examples = ["every weekday at half past nine", "each hour", "sundays at midnight"]
    await add(rh, make_adapter("cron", examples=examples), name="Zeit, wann/?")
    headers = {"x-roundhouse-adapters": "Zeit%2C wann/?"}
    asked = {"input": "each hour"}
    found = await call(rh, "POST", "/v1/route", json=asked, headers=headers)
    assert found["decisions"][0]["adapter"] == "Zeit, wann/?"
    headers = {"x-roundhouse-exclude": "echo:Zeit%2C wann/?"}
    found = await call(rh, "POST", "/v1/route", json=asked, headers=headers)
    assert found["decisions"][0]["adapter"] is None


# -- the base model before the name -------------------------------------------------------------


@pytest.mark.redis
async def test_a_base_model_may_stand_before_a_name(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    for model in ("echo:cron", "echo|cron", "echo:cron@1", "echo|cron@latest"):
        answer = await ask(rh, model)
        assert answer.json()["model"] == "cron"
        assert answer.headers["x-roundhouse-adapter"] == "cron"
        assert (await call(rh, "GET", f"/v1/models/{quote(model)}"))["parent"] == "echo"
    body = {"input": "x", "constraints": {"adapters": ["echo:cron"]}}
    await call(rh, "POST", "/v1/route", json=body)


@pytest.mark.redis
async def test_a_name_of_its_own_comes_before_a_base_model(rh, make_adapter):
    for name in ("cron", "echo:cron"):
        await add(rh, make_adapter("cron"), name=name)
    assert (await ask(rh, "echo:cron")).json()["model"] == "echo:cron"
    assert (await ask(rh, "echo|cron")).json()["model"] == "cron"
    await add(rh, make_adapter("cron", seed=1), name="cron")
    await call(rh, "POST", "/v1/adapters/cron/versions", 201, json={"source": str(make_adapter())})
    error(await ask(rh, "echo:cron@2"), 404)


@pytest.mark.redis
async def test_a_name_behind_another_base_model_is_none(make_world, store, make_adapter):
    other = ECHO_FACTS.model_copy(update={"id": "other"})
    await store.registry.put_base_model(other)
    async with make_world() as rh:
        await add(rh, make_adapter("cron"))
        await add(rh, make_adapter("sql"), name="sql", base_model="other")
        for model in ("other:cron", "echo:sql", "echo:nothing", "echo:", "echo:echo", "cron:echo"):
            assert error(await ask(rh, model), 404)["code"] == "model_not_found"
        assert "'echo:cron'" in error(await ask(rh, "echo:corn"), 404)["message"]
        assert "'cron@1'" in error(await ask(rh, "echo:cron@7"), 404)["message"]


@pytest.mark.redis
async def test_what_is_private_stays_so_behind_a_base_model(make_world, make_adapter):
    keys = [
        {"name": "ops", "sha256": ADMIN_HASH, "scope": "admin"},
        {"name": "app", "sha256": CLIENT_HASH, "scope": "client", "owner": "app"},
    ]
    async with make_world(auth={"enabled": True, "keys": keys}) as rh:
        admin, app = ({"authorization": f"Bearer {key}"} for key in (ADMIN_KEY, CLIENT_KEY))
        hidden = {"owner": "other", "visibility": "private"}
        for name, fields in (("secret", hidden), ("cron", {}), ("echo:cron", hidden)):
            body = {"source": str(make_adapter("cron")), "name": name} | fields
            await call(rh, "POST", "/v1/adapters", 201, json=body, headers=admin)
        for model in ("secret", "echo:secret"):
            await call(rh, "GET", f"/v1/models/{model}", 404, headers=app)
            assert (await call(rh, "GET", f"/v1/models/{model}", headers=admin))["id"] == model
        refused = await call(rh, "GET", "/v1/models/echo:secre", 404, headers=app)
        assert "secret" not in refused["error"]["message"].replace("'echo:secre'", "")
        # What one may not see does not stand before what one may.
        ref = {"messages": [{"role": "user", "content": "x"}], "model": "echo:cron"}
        found = await rh.client.post("/v1/chat/completions", json=ref, headers=app)
        assert found.headers["x-roundhouse-adapter"] == "cron"
