"""The page in a real browser, on a running cluster under load."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from urllib.parse import quote

import httpx
import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect, sync_playwright

from cluster.calls import CHAT_PATH
from tests.conftest import Running, wait_until
from tests.test_serve import add, chat, family, replicas

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"),
        reason="chromium is missing (Debian: apt-get install chromium)",
    ),
]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202egnihsif\u202c " + "y" * 3900


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def _is_error(message) -> bool:
    # An adapter that is not there is asked for on purpose; the browser notes the 404 by itself.
    is_asked = re.search(r"/v1/(adapters/|history\?)", message.location["url"])
    return message.type == "error" and not (is_asked and "404" in message.text)


@pytest.fixture
def page(browser, cluster) -> Iterator[Page]:
    """A page that must end without a word on the console, and without a request to elsewhere."""
    context = browser.new_context(base_url=cluster.url)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text) if _is_error(m) else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"alert: {dialog.message}"))
    page.on("request", lambda r: None if r.url.startswith(cluster.url) else said.append(r.url))
    page.goto("/")
    yield page
    context.close()
    assert said == []


@contextmanager
def load(cluster: Running, model: str, **fields) -> Iterator[None]:
    """Somebody who asks again and again."""
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=cluster.url, timeout=60) as client:
            while not ended.wait(0.05):
                client.post("/v1/chat/completions", json=chat("one two three", model, **fields))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def open_view(page: Page, view: str) -> None:
    """Shown when this returns: the address changes first, what is on the page after it."""
    link = page.get_by_role("navigation").get_by_role("link", name=view)
    link.click()
    expect(link).to_have_attribute("aria-current", "page")


def cell(page: Page, key: str, state: str = "slot"):
    return page.get_by_role("img", name=re.compile(rf"^{re.escape(key)}: {state} on "))


def test_a_hot_load_is_on_the_map_within_two_seconds(page, cluster, make_adapter):
    open_view(page, "Placement")
    expect(page.locator("#health")).to_have_text("ok")
    cluster.command("adapters", "add", str(make_adapter("hot")))
    began = time.monotonic()
    expect(cell(page, "hot@1")).to_have_count(2, timeout=2000)
    assert time.monotonic() - began < 2


def test_the_numbers_follow_the_load(page, cluster, http, make_adapter):
    add(http, make_adapter("loaded"))
    with load(cluster, "loaded", stream=True):
        hits = page.locator("dl.tiles div", has_text="hit ratio").locator("dd").first
        expect(hits).to_have_text(re.compile(r"\d+ %"), timeout=30_000)
        # The charts' library has drawn.
        expect(page.locator(".chart .scatterlayer .trace").first).to_be_attached(timeout=20_000)
        open_view(page, "Traffic")
        row = page.get_by_role("row").filter(has_text="loaded")
        expect(row).to_contain_text("100 %", timeout=20_000)
        expect(row).to_contain_text("ms")


def test_a_batch_is_followed_to_its_end(page, cluster, tmp_path):
    requests = [
        {"custom_id": f"r{i}", "method": "POST", "url": CHAT_PATH, "body": chat("one two three")}
        for i in range(10)
    ]
    file = tmp_path / "night.jsonl"
    file.write_text("\n".join(json.dumps(request) for request in requests))
    open_view(page, "Traffic")
    said = cluster.command("batch", "run", str(file)).stdout
    row = page.get_by_role("row").filter(has_text=said.split()[1])
    expect(row).to_contain_text("completed", timeout=10_000)
    expect(row.get_by_role("img", name="10 of 10 done")).to_be_attached()


def test_a_rollout_is_followed_and_rolled_back_from_the_page(page, http, make_adapter):
    add(http, make_adapter("canary"))
    second = {"source": str(make_adapter("canary", seed=2)), "promote": False}
    http.post("/v1/adapters/canary/versions", json=second).raise_for_status()
    open_view(page, "Placement")
    page.get_by_role("link", name="canary").click()
    page.get_by_role("button", name="Roll out").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Requests for canary go to version 2 in growing shares")
    dialog.get_by_label("Shares").fill("25, 100")
    dialog.get_by_label("Seconds").fill("600")
    dialog.get_by_role("button", name="Roll out").click()
    expect(page.get_by_text("Version 2 gets 25 % of the requests")).to_be_visible()
    page.get_by_role("button", name="Roll back").click()
    expect(dialog).to_contain_text("All requests for canary go to version 1 again")
    dialog.get_by_role("button", name="Cancel").click()
    assert http.get("/v1/adapters/canary").json()["rollout"] is not None
    page.get_by_role("button", name="Roll back").click()
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("Last: version 2 rolled back.")).to_be_visible()
    open_view(page, "Events")
    expect(page.get_by_text("canary@2 is being rolled out")).to_be_visible()


def test_a_prompt_shows_its_decision_and_its_answer(page, http, make_adapter):
    examples = ["each hour on the hour", "sundays at midnight", "every weekday at nine"]
    add(http, make_adapter("timetable", examples=examples))
    page.get_by_label("Prompt").fill("sundays at midnight")
    page.get_by_label("and answer it").check()
    page.get_by_role("button", name="Choose").click()
    expect(page.locator("pre")).to_have_text("sundays at midnight")
    expect(page.get_by_text("adapter timetable · replica")).to_be_visible()
    open_view(page, "Routing")
    expect(page.get_by_role("region", name="Newest choices")).to_contain_text("sundays at midnight")


def test_hostile_content_is_text(page, http, make_adapter):
    card = {"description": HOSTILE, "examples": [HOSTILE], "tags": ["<b>bold</b>"]}
    source = {"source": str(make_adapter("hostile"))} | card
    http.post("/v1/adapters", json=source).raise_for_status()
    http.post("/v1/chat/completions", json=chat(HOSTILE * 3, "auto")).raise_for_status()
    for view in ("#/", "#/map", "#/traffic", "#/routing", "#/events", "#/adapter/hostile"):
        page.goto(f"/{view}")
        expect(page.locator("#health")).to_have_class("ok")
    expect(page.get_by_text("<script>alert(2)</script>").first).to_be_visible()
    expect(page.get_by_text("<b>bold</b>", exact=True)).to_be_visible()
    page.goto("/#/adapter/%3Cscript%3Ealert(3)")
    expect(page.get_by_text("does not exist")).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")


def test_any_name_has_a_page(page, http, make_adapter):
    name = "Org/a?b#c%d e|f: ü"
    for seed in (0, 1):
        source = {"source": str(make_adapter("odd", seed=seed)), "name": name}
        http.post("/v1/adapters?replace=true&wait=true", json=source).raise_for_status()
    page.goto("/#/map")
    page.get_by_label("Search adapters").fill("ORG/")
    page.get_by_role("link", name=name, exact=True).click()
    expect(page).to_have_url(re.compile("#/adapter/Org%2Fa%3Fb%23c%25d%20e%7Cf%3A%20%C3%BC$"))
    expect(page.get_by_role("heading", name=f"Adapter {name}")).to_be_visible()
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    at = f"/v1/adapters/{quote(name, safe='')}"
    wait_until(lambda: http.get(at).json()["aliases"]["stable"] == 1)
    page.goto(f"/#/adapter/{quote(name, safe='/')}")
    page.reload()
    expect(page.get_by_role("heading", name=f"Adapter {name}")).to_be_visible()


@pytest.fixture
def seen(http, make_adapter) -> None:
    """Something on every view: two adapters, answers, choices, a rollout that came to nothing."""
    for seed in (0, 1):
        seen = add(http, make_adapter("seen", seed=seed, tags=["new"], description="To be seen."))
    add(http, make_adapter("beside"))
    version = max(v["number"] for v in seen["versions"])
    steps = {"version": version, "percent": [25, 100], "step_s": 600, "gate": False}
    for model in ("seen", "beside", "auto", "echo"):
        http.post("/v1/chat/completions", json=chat("an example for seen", model, stream=True))
    for change, body in (("rollback", {}), ("rollout", steps), ("rollback", {})):
        http.post(f"/v1/adapters/seen/{change}", json=body).raise_for_status()


def shows(page: Page, view: str) -> None:
    """Until the view is there, what it asks for and its charts, too."""
    page.goto(f"/{view}")
    expect(page.locator("#health")).not_to_have_text("asking the cluster…")
    expect(page.locator("nav a[aria-current]")).to_have_count(0 if "adapter" in view else 1)
    expect(page.locator("main")).not_to_contain_text("Loading…")
    # Charts come last.
    expect(page.locator("main .chart:not(:has(.main-svg))")).to_have_count(0, timeout=20_000)


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nobody_is_shut_out(page, scheme, width):
    """axe-core finds no serious fault; a phone shows all without scrolling sideways."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for view in ("#/", "#/map", "#/traffic", "#/routing", "#/events", "#/adapter/seen"):
        shows(page, view)
        found = Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in serious]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), view


@pytest.mark.parametrize("hash", ["constructor", "__proto__", "adapter/%zz", "adapter/", "nothing"])
def test_no_address_stops_the_page(page, hash):
    page.goto(f"/#/{hash}")
    with page.expect_response("**/v1/dashboard*"):
        pass
    expect(page.locator("#health")).to_have_class("ok")
    page.goto("/#/map")
    expect(page.get_by_role("heading", name="Placement")).to_be_visible()


def test_the_focus_stays_while_numbers_change(page, cluster, http, make_adapter):
    add(http, make_adapter("asked"))
    with load(cluster, "asked"):
        link = page.get_by_role("region", name="Replicas").get_by_role("link").first
        link.focus()
        ongoing = page.get_by_role("region", name="Replicas").locator("tbody")
        before = ongoing.inner_text()
        expect(ongoing).not_to_have_text(before, timeout=10_000)
        page.wait_for_timeout(2000)
        expect(link).to_be_focused()


def test_keys_lead_everywhere(page, http, make_adapter):
    add(http, make_adapter("found"))
    page.keyboard.press("4")
    expect(page).to_have_url(re.compile("#/routing$"))
    page.keyboard.press("/")
    expect(page.get_by_label("Search adapters")).to_be_focused()
    page.keyboard.type("nothing-is-called-so")
    expect(page.get_by_text("Nothing matches.")).to_be_visible()


def test_a_silent_store_shows_and_the_page_goes_on(page, cluster, http):
    (store,) = (p for p in family(cluster) if "valkey-server" in " ".join(p.cmdline()))
    expect(page.locator("#health")).to_have_class("ok")
    ids = [m["id"] for m in replicas(http)]
    store.suspend()
    try:
        expect(page.locator("#health")).to_contain_text("degraded, stale", timeout=20_000)
        expect(page.locator("#stale")).to_contain_text("What you see of replicas")
        for id in ids:
            expect(page.get_by_role("link", name=id, exact=True)).to_be_visible()
        assert httpx.get(f"{cluster.url}/metrics", timeout=5).status_code == 200
        answer = http.post("/v1/chat/completions", json=chat("still here"))
        assert answer.status_code == 200
    finally:
        store.resume()
    expect(page.locator("#health")).to_have_class("ok", timeout=20_000)


def test_a_dead_replica_shows(page, cluster, http):
    before = {m["id"] for m in replicas(http)}
    open_view(page, "Events")
    expect(page.get_by_text("is there on").first).to_be_visible()
    # A silent store may have had it thought of as gone before.
    gone = {id: page.get_by_text(f"replica of echo {id} is gone") for id in before}
    told = {id: events.count() for id, events in gone.items()}
    victim = next(p for p in family(cluster) if "Model-echo" in " ".join(p.cmdline()))
    victim.kill()
    wait_until(lambda: len(before - {m["id"] for m in replicas(http)}) == 1, timeout_s=40)
    (dead,) = before - {m["id"] for m in replicas(http)}
    expect(gone[dead]).not_to_have_count(told[dead], timeout=40_000)
    page.goto(f"/#/replica/{dead}")
    expect(page.get_by_text("It does not report: it is gone.")).to_be_visible()
    wait_until(lambda: len(replicas(http)) == 2, timeout_s=60)
    open_view(page, "Placement")
    new = next(m["id"] for m in replicas(http) if m["id"] not in before)
    expect(page.get_by_role("link", name=new)).to_be_visible()


def test_a_key_is_asked_for_and_can_be_given_and_withheld(browser, locked, admin_key):
    page = browser.new_page(base_url=locked.url)
    page.goto("/")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This cluster asks for a key")
    dialog.get_by_label("Key").fill("rh-wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("not known here")
    dialog.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(2500)
    expect(dialog).to_be_hidden()
    page.locator("#health").click()
    dialog.get_by_label("Key").fill(admin_key[0])
    page.keyboard.press("Enter")
    expect(page.locator("#health")).to_have_class("ok", timeout=10_000)
    page.close()


def test_an_open_cluster_is_loud_about_it(page):
    banner = page.locator("#open")
    expect(page.locator("#health")).to_have_class("ok")
    expect(banner).to_be_hidden()

    def opened(route: Route) -> None:
        told = route.fetch().json()
        route.fulfill(json=told | {"is_open": True})

    page.route("**/v1/dashboard?*", opened)
    expect(banner).to_be_visible()
    expect(banner).to_contain_text("whoever reaches this address may use the cluster")


@pytest.mark.hostile
def test_a_page_elsewhere_cannot_make_a_browser_spend(browser, cluster):
    """As a plain form could: a body of text, which no browser asks anybody about before."""
    elsewhere = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=elsewhere.serve_forever).start()
    page = browser.new_page()
    try:
        page.goto(f"http://localhost:{elsewhere.server_port}/README.md")
        url = f"{cluster.url}/v1/chat/completions"
        with page.expect_response(url) as answered:
            page.evaluate(
                "([url, body]) => { fetch(url, {method: 'POST', mode: 'no-cors', body}) }",
                [url, json.dumps(chat("one two three", "echo"))],
            )
        assert answered.value.status == 403
    finally:
        page.close()
        elsewhere.shutdown()
        elsewhere.server_close()
