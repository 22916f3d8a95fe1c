"""Rules before the classifier: what they are about, what they leave, and who follows them."""

import asyncio
import random
import time
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.errors import ConfigError, InvalidRequest
from cluster.rules import When
from cluster.settings import StoreSettings, parse_settings
from deployments.command import cli_router
from deployments.command.cli import app
from deployments.process import metrics
from router.rules.matching import Asked, Matcher
from tests.conftest import until
from tests.redis_servers import server
from tests.test_http import CRON, add, ask, chat, error, world
from tests.test_tenants import register, tenants  # noqa: F401  (a fixture)

SQL = ["total of all orders", "customers from Paris", "count the rows of a table"]


def rule(name: str, when: dict[str, Any] | None = None, **said: Any) -> dict[str, Any]:
    return {"name": name, "when": when or {}} | said


async def routed(rh, text: Any = "every friday at ten", headers=None, **fields: Any):
    answer = await rh.client.post("/v1/route", json={"input": text} | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["decisions"][0]


async def hold(rh, *rules: dict[str, Any], **fields: Any):
    return await rh.client.put("/v1/rules", json={"rules": list(rules)} | fields)


@pytest.fixture
async def rh(make_world, make_adapter):
    async with make_world() as it:
        await add(it, make_adapter("cron", examples=CRON))
        await add(it, make_adapter("sql", seed=1, examples=SQL))
        yield it


# -- what a rule is about -------------------------------------------------------------------------


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("when", "matching", "others"),
    [
        ({}, ["", "anything"], []),
        ({"words": ["select"]}, ["Please SELECT it", "(select)"], ["selection", "preselect", ""]),
        ({"words": ["straße"]}, ["DIE STRASSE"], ["Straßen"]),
        ({"words": ["cafe\u0301"]}, ["the caf\u00e9"], ["cafeteria"]),
        ({"words": ["C++", "tax return"]}, ["c++20", "my tax\n return, please"], ["C+", "tax"]),
        ({"words": ["退款", "SQL"]}, ["我要退款谢谢", "请用SQL写"], ["退", "MySQLite"]),
        ({"pattern": r"^\s*(?i:select)\b"}, [" select 1"], ["do select", "selected"]),
        ({"pattern": r"\b(?:\d[ -]?){13,16}\b"}, ["4111 1111-1111 1111"], ["4111 1111"]),
        ({"pattern": "\x00"}, ["a\x00b"], ["ab"]),
        ({"script": ["Cyrillic"]}, ["Привет, how? да нет"], ["the word да", "12 !?", ""]),
        ({"script": ["Han", "Hiragana"]}, ["私は元気です"], ["カタカナ"]),
        ({"min_chars": 3, "max_chars": 4}, ["abc", "\ud800abc"], ["ab", "abcde"]),
        ({"words": ["a"], "max_chars": 3}, ["a b"], ["abc", "a bc"]),
        ({"words": ["first"]}, [turns("x", "y", "first")], [turns("first", "y", "x")]),
        (
            {"words": ["first"], "within": "conversation"},
            [turns("first", "y", "x"), ["second", "first"]],
            [turns("x")],
        ),
    ],
)
def test_a_condition_holds_for_what_it_says(when, matching, others):
    matcher = Matcher(When(**when))
    assert [matcher.matches(Asked(value, {}), "") for value in matching] == [True] * len(matching)
    assert [matcher.matches(Asked(value, {}), "") for value in others] == [False] * len(others)


def test_headers_and_tenants_are_matched_as_they_are():
    matcher = Matcher(When(header={"X-App": "kids", "x-any": "*"}, tenant=("acme", "b")))
    headers = {"x-app": "kids", "x-any": "1"}
    assert matcher.matches(Asked("", headers), "acme")
    assert not matcher.matches(Asked("", headers), "")
    assert not matcher.matches(Asked("", headers | {"x-app": "Kids"}), "acme")
    assert not matcher.matches(Asked("", {"x-app": "kids"}), "acme")


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)+$", "(.*a){20}c", "[ab]*a[ab]{290}c", r"^(([a-z])+.)+[A-Z]([a-z])+$"],
)
def test_no_pattern_takes_long_on_any_text(pattern):
    """Where a matcher goes back and tries again, thirty characters take a minute."""
    pick = random.Random(0)
    texts = ["a" * 4_000_000 + "!", "".join(pick.choices("ab", k=100_000))]
    matcher = Matcher(When(pattern=pattern))
    for text in texts:
        asked = Asked(text, {})
        _ = asked.turn
        began = time.process_time()
        assert not matcher.matches(asked, "")
        assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (rule("a"), "router.rules.0: it must say one of adapter, only, never and base_model"),
        (rule("a", adapter="x", only=["y"]), "router.rules.0: it must say one of"),
        (rule("a/b", adapter="x"), "router.rules.0.name: up to 64 letters"),
        (rule("a", {"pattern": "(?=x)"}, adapter="x"), "router.rules.0.when.pattern: not a pat"),
        (rule("a", {"pattern": "(.{9}x){99}"}, adapter="x"), "when.pattern: the pattern has 990"),
        (rule("a", {"script": ["Klingon"]}, adapter="x"), "router.rules.0.when.script.0: no scr"),
        (rule("a", {"header": {"Cookie": "*"}}, adapter="x"), "when.header: what Cookie holds is"),
        (rule("a", {"language": ["de"]}, adapter="x"), "when.language: no such setting"),
        (rule("a", {"min_chars": 3, "max_chars": 2}, adapter="x"), "at least min_chars"),
        (rule("a", adapter="x@1"), "router.rules.0.adapter: '@' stands between"),
        (rule("a", base_model="other"), "router.rules.0.base_model: 'other' is not one of"),
    ],
)
def test_a_wrong_rule_is_named_with_its_field(wrong, said):
    tree = {"models": [{"id": "m", "path": "x"}], "router": {"rules": [wrong]}}
    with pytest.raises(ConfigError) as refused:
        parse_settings(tree)
    assert said in refused.value.message


# -- what it leaves -------------------------------------------------------------------------------


@pytest.mark.redis
async def test_each_kind_of_rule_acts_and_is_told(rh):
    assert (await routed(rh))["adapter"] == "cron"
    cases = {
        "sql": rule("to sql", {"words": ["friday"]}, adapter="sql"),
        "base": rule("plain", {"words": ["friday"]}, base_model=True),
        "cron": rule("only", {"words": ["monday"]}, adapter="sql"),
    }
    for answered, one in cases.items():
        assert (await hold(rh, one)).status_code == 200
        answer = await ask(rh, "auto", "every friday at ten")
        assert answer.headers["x-roundhouse-adapter"] == answered
        assert answer.headers["x-roundhouse-route"] == "auto"
    await hold(rh, cases["sql"])
    decision = await routed(rh)
    assert (decision["rule"], decision["confidence"]) == ("to sql", 1)
    assert "'to sql'" in decision["reason"]
    await hold(rh, rule("not cron", never=["cron"]), rule("not sql", only=["cron"]))
    decision = await routed(rh)
    assert decision["adapter"] is None
    assert decision["narrowed_by"] == ["not cron", "not sql"]
    assert decision["reason"].startswith("by the rule 'not cron' and the rule 'not sql': ")
    await hold(rh, rule("either", only=["cron", "sql"]), rule("not sql", never=["sql"]))
    assert (await routed(rh))["adapter"] == "cron"


@pytest.mark.redis
async def test_what_a_narrowing_rule_excludes_is_told_by_its_name(rh):
    await hold(rh, rule("quiet hours", never=["cron"]))
    decision = await routed(rh)
    assert decision["adapter"] != "cron"
    assert decision["excluded"] == {"cron": "the rule 'quiet hours'"}


@pytest.mark.redis
async def test_rules_are_counted_and_their_decisions_kept(rh):
    def counted() -> float:
        labels = {"rule": "counted", "part": "chose"}
        return metrics.REGISTRY.get_sample_value("roundhouse_routing_rules_total", labels) or 0.0

    before = counted()
    await hold(rh, rule("counted", adapter="sql"))
    await ask(rh, "auto", "every friday at ten")
    await routed(rh)
    assert counted() == before + 1
    headers = {"x-request-id": "r1"}
    await rh.client.post("/v1/chat/completions", json=chat("auto"), headers=headers)

    async def kept() -> bool:
        return (await rh.client.get("/v1/decisions/r1")).status_code == 200

    await until(kept)
    assert (await rh.client.get("/v1/decisions/r1")).json()["decision"]["rule"] == "counted"


@pytest.mark.redis
async def test_what_a_rule_says_holds_without_the_prompt_router(rh):
    await hold(
        rh, rule("sure", {"words": ["friday"]}, adapter="sql"), rule("either", only=["cron"])
    )
    rh.chooser.is_down = True
    answer = await rh.client.post("/v1/route", json={"input": ["on friday", "each hour"]})
    sure, other = answer.json()["decisions"]
    assert (sure["adapter"], sure["route"]) == ("sql", "auto")
    assert (other["adapter"], other["route"]) == (None, "fallback")


@pytest.mark.redis
async def test_a_rule_and_the_requests_constraints_hold_both(rh):
    await hold(rh, rule("to sql", {"words": ["friday"]}, adapter="sql"), rule("n", only=["cron"]))
    decision = await routed(rh, constraints={"exclude": ["sql"]})
    assert decision["adapter"] is None, "not one that neither the rule nor the client named"
    assert decision["reason"] == "the rule 'to sql' names sql, excluded by exclude"
    assert decision["excluded"] == {"sql": "exclude"}
    decision = await routed(rh, "each hour", constraints={"adapters": ["sql"]})
    assert (decision["adapter"], decision["narrowed_by"]) == (None, ["n"])
    assert "the constraints leave no adapter" in decision["reason"]
    await hold(rh, rule("never sql", never=["sql"]), rule("to sql", adapter="sql"))
    assert "excluded by the rule 'never sql'" in (await routed(rh))["reason"]


@pytest.mark.redis
async def test_costs_that_a_request_bounds_bound_a_rule_too(make_world, make_adapter):
    model = {"id": "echo", "path": "none", "engine": "echo", "price": 3.0}
    other = model | {"id": "small", "price": 1.0}
    async with make_world(models=[model, other], default_model="small") as rh:
        await add(rh, make_adapter("sql", examples=SQL))
        await hold(rh, rule("to sql", {"words": ["sql"]}, adapter="sql"))
        assert (await routed(rh, "sql"))["adapter"] == "sql"
        decision = await routed(rh, "sql", constraints={"max_price": 2})
        assert (decision["adapter"], decision["model"]) == (None, "small")
        assert decision["excluded"] == {"sql": "max_price: costs 3"}
        decision = await routed(rh, "sql", constraints={"max_latency_s": 60})
        assert decision["adapter"] == "sql"


@pytest.mark.redis
async def test_a_base_model_by_a_rule_is_no_prompt_out_of_scope(make_world):
    rules = [
        rule("plain", {"words": ["plain"]}, base_model="echo"),
        rule("gone", {"words": ["gone"]}, only=["cron"]),
    ]
    async with make_world(router={"out_of_scope": "refuse", "rules": rules}) as rh:
        assert (await ask(rh, "auto", "plain text")).status_code == 200
        refused = error(await ask(rh, "auto", "it is gone"), 422)
        assert "by the rule 'gone'" in refused["message"]
        body = chat("auto", "plain text") | {"constraints": {"base_model": "echo"}}
        answer = await rh.client.post("/v1/chat/completions", json=body)
        assert answer.headers["x-roundhouse-adapter"] == "base"


# -- whose it is ----------------------------------------------------------------------------------


@pytest.mark.redis
async def test_a_rule_neither_tells_of_nor_reaches_a_private_adapter(tenants, make_adapter):  # noqa: F811
    rules = [
        rule("by name", {"words": ["friday"]}, adapter="vault"),
        rule("not that", never=["vault"]),
        rule("tenant", {"tenant": ["alice"], "words": ["monday"]}, base_model=True),
    ]
    async with tenants() as (_, alice, bob, ops):
        await register(
            ops, make_adapter("vault", examples=SQL), visibility="private", owner="alice"
        )
        await register(ops, make_adapter("cron", seed=1, examples=CRON))
        before = [(await bob("POST", "/v1/route", {"input": t})).json() for t in CRON]
        assert (await ops("PUT", "/v1/rules", {"rules": rules})).status_code == 200
        body = {"input": "every friday at ten"}
        assert (await alice("POST", "/v1/route", body)).json()["decisions"][0]["adapter"] == "vault"
        assert (await bob("POST", "/v1/route", body)).json()["decisions"][0]["adapter"] == "cron"
        after = [(await bob("POST", "/v1/route", {"input": t})).json() for t in CRON]
        assert after == before
        tried = await ops("POST", "/v1/route", body | {"tenant": "bob"})
        assert tried.json()["decisions"][0]["adapter"] == "cron"
        assert tried.json() == (await bob("POST", "/v1/route", body)).json()


@pytest.mark.redis
async def test_rules_are_for_admins(tenants):  # noqa: F811
    async with tenants() as (_, alice, _, ops):
        for method in ("GET", "PUT", "DELETE"):
            error(await alice(method, "/v1/rules", {"rules": []}), 403)
        for field, value in (("rules", []), ("tenant", "bob")):
            refused = await alice("POST", "/v1/route", {"input": "x", field: value})
            assert error(refused, 403)["param"] == field
        assert (await ops("GET", "/v1/rules")).status_code == 200


# -- who follows them -----------------------------------------------------------------------------


@pytest.mark.redis
async def test_all_ingresses_follow_within_a_second_and_restarts_keep_them(make_world):
    settings = {"router": {"rules": [rule("configured", {"words": ["ask"]}, base_model=True)]}}
    async with make_world(**settings) as one, make_world(**settings) as two:
        assert (await routed(two, "ask"))["rule"] == "configured"
        put = await hold(one, rule("stored", base_model=True), rule("b", adapter="nobody"))
        shown = put.json()
        assert (shown["source"], shown["revision"], shown["unknown"]) == ("store", 1, ["nobody"])
        assert (await routed(one, "ask"))["rule"] == "stored", "at once where it was set"

        async def follows() -> bool:
            return (await routed(two, "ask"))["rule"] == "stored"

        await until(follows, timeout_s=1)
        assert error(await hold(two, revision=0), 409)["param"] == "revision"
        async with make_world(**settings) as three:
            assert (await routed(three, "ask"))["rule"] == "stored"
        back = (await two.client.delete("/v1/rules")).json()
        assert (back["source"], [r["name"] for r in back["rules"]]) == ("settings", ["configured"])
        assert (await routed(two, "ask"))["rule"] == "configured"


@pytest.mark.redis
async def test_a_wrong_set_of_rules_changes_nothing(make_world):
    async with make_world() as rh:
        await hold(rh, rule("good", base_model=True))
        wrong = [rule("good", base_model=True), rule("bad", {"pattern": "("}, adapter="x")]
        assert error(await hold(rh, *wrong), 400)["param"] == "rules[1].when.pattern"
        wrong = [rule("bad", base_model="other")]
        assert error(await hold(rh, *wrong), 400)["param"] == "rules[0].base_model"
        assert error(await hold(rh, *[rule("a", base_model=True)] * 2), 400)["param"] == "rules"
        tried = await rh.client.post("/v1/route", json={"input": "x", "rules": wrong})
        assert error(tried, 400)["param"] == "rules[0].base_model"
        assert (await routed(rh, "x"))["rule"] == "good"


@pytest.mark.redis
async def test_rules_of_a_newer_release_are_not_half_obeyed(make_world, store):
    async with make_world() as rh:
        await hold(rh, rule("old", base_model=True))
        newer = '[{"name": "new", "when": {"mood": "sad"}, "base_model": true}]'
        await store.server.run(
            "put_rules", [store.server.keys.rules, store.server.once()], ["", newer]
        )

        async def noticed() -> bool:
            return (await rh.client.get("/v1/rules")).json()["problem"] is not None

        await until(noticed)
        assert (await routed(rh, "x"))["rule"] == "old"


@pytest.mark.redis
async def test_they_hold_while_the_store_is_away(prompt_router, tmp_path):
    with server(tmp_path / "redis", "") as redis:
        at = StoreSettings(url=f"redis://127.0.0.1:{redis.port}/0", namespace="rules")
        async with world(at, prompt_router, tmp_path) as rh:
            await hold(rh, rule("kept", base_model=True))
            redis.kill()
            answer = await ask(rh, "auto", "anything")
            assert answer.status_code == 200
            assert error(await hold(rh), 503)["code"] == "store_unavailable"
            assert (await routed(rh, "x"))["rule"] == "kept"
            assert (await routed(rh, "x", constraints={"max_latency_s": 9}))["rule"] == "kept"


@pytest.mark.redis
async def test_tried_rules_decide_one_request_and_no_other(rh):
    await hold(rh, rule("held", {"header": {"x-app": "kids"}}, base_model=True))
    tried = [rule("tried", {"header": {"x-app": "kids"}}, adapter="sql")]
    kids = {"x-app": "kids"}
    assert (await routed(rh, headers=kids, rules=tried))["rule"] == "tried"
    assert (await routed(rh, rules=tried))["adapter"] == "cron"
    assert (await routed(rh, headers=kids, rules=[]))["adapter"] == "cron"
    assert (await routed(rh, headers=kids))["rule"] == "held"


@pytest.mark.redis
@pytest.mark.parametrize("text", ["", " \t\n", "\x00", "\u200b", "a" * 1_000_000, "每小时 " * 9])
async def test_any_text_is_decided_on(rh, text):
    await hold(rh, rule("n", {"words": ["never there"], "pattern": "z{9}"}, adapter="sql"))
    assert (await routed(rh, text))["route"] == "auto"
    assert (await routed(rh, [text, text]))["route"] == "auto"


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    rules = [
        rule("narrow", never=["big"]),
        rule("sql", {"words": ["select"], "header": {"x-app": "db"}}, adapter="sql"),
        rule("tenant", {"tenant": ["acme"]}, base_model=True),
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": rules}))
    return str(path)


def run(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.stdout.split())


def test_rules_are_tested_without_a_cluster(file):
    said = run("rules", "test", file, "SELECT 1", "--header", "X-App: db")
    assert said == "narrow: never big sql: adapter sql"
    said = run("rules", "test", file, "SELECT 1")
    assert said == "narrow: never big the prompt router chooses among what they leave"
    assert "base_model (the default one)" in run("rules", "test", file, "x", "--tenant", "acme")


def test_a_file_of_no_rules_is_named(tmp_path, file):
    wrong = tmp_path / "wrong.yaml"
    for content, said in (("a: 1", "a list of rules"), ("[", "YAML"), ("- name: x", "rules.0")):
        wrong.write_text(content)
        with pytest.raises((ConfigError, InvalidRequest), match=said):
            run("rules", "test", str(wrong), "x")
    with pytest.raises(InvalidRequest, match="NAME: VALUE"):
        run("rules", "test", file, "x", "--header", "x-app")


@pytest.fixture
async def clients(rh, monkeypatch):
    """The commands' client, on the endpoint of this process."""
    loop = asyncio.get_running_loop()

    class Client:
        def __init__(self, *_: object) -> None: ...

        def _call(self, method: str, path: str, headers=None, **kwargs: Any) -> Any:
            asked = rh.client.request(method, path, headers=headers, **kwargs)
            answer = asyncio.run_coroutine_threadsafe(asked, loop).result()
            assert answer.status_code == 200, answer.text
            return answer.json()

        def get(self, path: str) -> Any:
            return self._call("GET", path)

        def put(self, path: str, body: Any) -> Any:
            return self._call("PUT", path, json=body)

        def delete(self, path: str) -> Any:
            return self._call("DELETE", path)

        def post(self, path: str, body: Any, headers: Any = None) -> Any:
            return self._call("POST", path, headers, json=body)

    monkeypatch.setattr(cli_router, "client_of", Client)
    monkeypatch.setattr("deployments.command.cli.client_of", Client)


@pytest.mark.redis
@pytest.mark.usefixtures("clients")
async def test_rules_are_set_shown_tried_and_reset_by_commands(file, tmp_path):
    async def said(*words: str) -> str:
        return await asyncio.to_thread(run, *words)

    assert await said("rules", "set", file) == "rules that hold: 3, revision 1"
    shown = tmp_path / "shown.yaml"
    result = await asyncio.to_thread(CliRunner().invoke, app, ["rules", "show"])
    shown.write_text(result.stdout)
    assert yaml.safe_load(shown.read_text())["rules"][1]["when"]["header"] == {"x-app": "db"}
    assert (
        await said("rules", "set", str(shown), "--revision", "1")
        == "rules that hold: 3, revision 2"
    )
    header = ("--header", "x-app: db")
    assert "by the rule 'sql'" in await said("route", "select 1", *header)
    assert await said("rules", "reset") == "rules that hold, of the settings: 0"
    assert "by the rule" not in await said("route", "select 1", *header)
    assert "by the rule 'sql'" in await said("route", "select 1", *header, "--rules", file)
    said_so = await said("route", "hello", "--rules", file, "--tenant", "acme")
    assert "by the rule 'tenant'" in said_so
