"""Who may knock: pages elsewhere, names led here, open addresses, and the first key."""

import gzip
import json
import stat
from itertools import product

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError
from cluster.settings import Settings, door_problem, parse_settings
from deployments import app
from deployments.app import build
from deployments.command import cli
from deployments.command.doctor import examine
from deployments.command.first_key import FILE, KEY_FILE, with_first_key
from deployments.ingress.auth import hash_key
from deployments.ingress.edge.legible import before_serve
from tests.test_http import ADMIN_HASH, ADMIN_KEY, JSON, add, chat, error

pytestmark = [pytest.mark.redis, pytest.mark.hostile]

ECHO = {"id": "echo", "path": "none", "engine": "echo"}
KEYS = [{"name": "ops", "sha256": ADMIN_HASH, "scope": "admin"}]
LOCKED = {"enabled": True, "keys": KEYS}
BEARER = {"authorization": f"Bearer {ADMIN_KEY}"}
EVIL = "https://evil.example"


@pytest.fixture
async def rh(make_world):
    async with make_world() as it:
        yield it


# -- the name by which it is asked ------------------------------------------------------------


async def test_a_name_that_was_led_here_gets_nothing(rh):
    for path in ("/", "/v1/decisions", "/v1/models", "/metrics", "/nothing"):
        refused = await rh.client.get(path, headers={"host": "evil.example:8000"})
        found = error(refused, 403)
        assert found["code"] == "host_not_allowed"
        assert "http.allowed_hosts" in found["message"]
        assert refused.headers["content-type"] == "application/json"


OURS = ["localhost", "LOCALHOST:8000", "a.localhost", "localhost.", "127.0.0.1:8000", "127.9.9.9"]
OURS += ["[::1]:8000", "10.1.2.3:8000", "[fe80::1]"]
LIKE_OURS = ["localhost.evil.example", "127.0.0.1.evil.example", "evil.example", "notlocalhost"]
LIKE_OURS += ["0x7f.1", "roundhouse.example", "example.com", "a.example.evil", "xa.example"]
NO_HOST = ["[", "a b", "x@localhost", "localhost:80:80", "", "[::1", "a/b", "localhost:x"]


async def test_this_machine_and_addresses_are_names_of_ours(rh):
    """No name server leads an address elsewhere; Kubernetes' probes ask a pod by its own."""
    for host in OURS:
        answer = await rh.client.get("/v1/models", headers={"host": host})
        assert answer.status_code == 200, host


async def test_names_that_look_like_ours_are_not(make_world):
    async with make_world(http={"allowed_hosts": ["a.example", "*.example.com"]}) as rh:
        for host in LIKE_OURS:
            error(await rh.client.get("/v1/models", headers={"host": host}), 403)
        for host in ("a.example", "A.Example:80", "b.example.com", *OURS):
            assert (await rh.client.get("/v1/models", headers={"host": host})).status_code == 200


async def test_probes_are_answered_whatever_the_name(rh):
    for path in ("/healthz", "/readyz"):
        answer = await rh.client.get(path, headers={"host": "some.pod.internal"})
        assert answer.status_code in (200, 503)


async def test_with_keys_any_name_does_unless_the_settings_have_some(make_world):
    pod = BEARER | {"host": "roundhouse-serve-svc.roundhouse.svc:8000"}
    async with make_world(auth=LOCKED) as rh:
        assert (await rh.client.get("/v1/models", headers=pod)).status_code == 200
    async with make_world(auth=LOCKED, http={"allowed_hosts": ["llm.example"]}) as rh:
        error(await rh.client.get("/v1/models", headers=pod), 403)
        named = BEARER | {"host": "llm.example"}
        assert (await rh.client.get("/v1/models", headers=named)).status_code == 200


async def test_what_is_no_host_is_400_with_keys_too(make_world):
    async with make_world(auth=LOCKED) as rh:
        for host, path in product(NO_HOST, ("/v1/models", "/v1/models/", "/healthz")):
            error(await rh.client.get(path, headers=BEARER | {"host": host}), 400)


# -- the page that asks -----------------------------------------------------------------------

PAGES_ELSEWHERE = [
    {"origin": EVIL},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost.evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
    {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
    {"sec-fetch-site": "?"},
]
CHANGES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/route"),
    ("POST", "/v1/feedback"),
    ("POST", "/v1/adapters"),
    ("PUT", "/v1/adapters/cron"),
    ("PATCH", "/v1/adapters/cron"),
    ("DELETE", "/v1/adapters/cron"),
    ("POST", "/v1/adapters/cron/rollback"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/uploads"),
]


async def test_a_page_elsewhere_changes_and_spends_nothing(rh, make_adapter):
    await add(rh, make_adapter("cron"))
    for sent, (method, path) in product(PAGES_ELSEWHERE, CHANGES):
        refused = await rh.client.request(method, path, json=chat("echo"), headers=sent)
        assert error(refused, 403)["code"] == "origin_not_allowed", (sent, path)
    assert (await rh.client.get("/v1/adapters/cron")).status_code == 200
    assert rh.pool.terms == []


async def test_its_own_page_and_what_is_no_browser_are_let_in(rh):
    behind_tls = {"origin": "https://localhost", "sec-fetch-site": "same-origin"}
    for sent in ({}, {"origin": "http://localhost"}, behind_tls, {"sec-fetch-site": "none"}):
        answer = await rh.client.post("/v1/chat/completions", json=chat("echo"), headers=sent)
        assert answer.status_code == 200, sent


async def test_a_schemes_own_port_may_be_told_or_not(rh):
    """Browsers leave it out of the origin, proxies put it into the host."""
    same = (("http://box", "10.0.0.1:80"), ("https://10.0.0.1", "10.0.0.1:443"))
    for origin, host in (*same, ("http://10.0.0.1:8080", "10.0.0.1")):
        sent = {"origin": origin, "host": host}
        refused = await rh.client.post("/v1/chat/completions", json=chat("echo"), headers=sent)
        is_same = "10.0.0.1" in origin and ":8080" not in origin
        assert refused.status_code == (200 if is_same else 403), origin
        assert is_same or host in refused.json()["error"]["message"]
    sent = {"origin": "http://localhost", "host": "localhost:80"}
    answer = await rh.client.post("/v1/chat/completions", json=chat("echo"), headers=sent)
    assert answer.status_code == 200


async def test_probes_may_ask_for_the_head_alone(rh):
    for path in ("/healthz", "/readyz", "/"):
        answer = await rh.client.head(path)
        assert answer.status_code in (200, 503), path


async def test_a_packed_body_is_415_and_says_so(rh):
    packed = JSON | {"content-encoding": "gzip"}
    body = gzip.compress(json.dumps(chat("echo")).encode())
    refused = await rh.client.post("/v1/chat/completions", content=body, headers=packed)
    assert "content-encoding 'gzip'" in error(refused, 415)["message"]


async def test_a_page_elsewhere_that_the_settings_name_is_let_in_and_may_read(make_world):
    app = "https://app.example.com"
    async with make_world(auth=LOCKED, http={"cors": {"origins": [app]}}) as rh:
        wanted = {"access-control-request-method": "POST"}
        wanted["access-control-request-headers"] = "authorization, content-type"
        told = await rh.client.options("/v1/chat/completions", headers={"origin": app} | wanted)
        assert told.headers["access-control-allow-origin"] == app
        private = {"access-control-request-private-network": "true"}
        sent = {"origin": app} | wanted | private
        assert (await rh.client.options("/v1/models", headers=sent)).status_code == 200
        sent = BEARER | {"origin": app, "sec-fetch-site": "cross-site"}
        answer = await rh.client.post("/v1/chat/completions", json=chat("echo"), headers=sent)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == app
        assert "access-control-allow-credentials" not in answer.headers
        other = await rh.client.options("/v1/models", headers={"origin": EVIL} | wanted)
        assert "access-control-allow-origin" not in other.headers


async def test_what_a_page_elsewhere_may_send_is_told_before_and_held_to(make_world, make_adapter):
    """Preflights are answered before keys are asked for; what they would refuse is refused."""
    app = "https://app.example.com"
    cors = {"origins": [app], "methods": ["GET", "POST"], "headers": ["authorization", "x-mine"]}
    async with make_world(auth=LOCKED, http={"cors": cors}) as rh:
        await rh.client.post(
            "/v1/adapters", json={"source": str(make_adapter("cron"))}, headers=BEARER
        )
        for method, headers, status in (
            ("POST", "authorization, content-type, x-mine", 200),
            ("POST", "x-other", 400),
            ("DELETE", "authorization", 400),
        ):
            asked = {"origin": app, "access-control-request-method": method}
            asked["access-control-request-headers"] = headers
            told = await rh.client.options("/v1/adapters/cron", headers=asked)
            assert told.status_code == status, (method, headers)
        sent = BEARER | {"origin": app}
        found = error(await rh.client.delete("/v1/adapters/cron", headers=sent), 403)
        assert "http.cors.methods" in found["message"]
        assert (await rh.client.get("/v1/adapters/cron", headers=sent)).status_code == 200


async def test_browsers_that_ask_first_are_told_of_nobody_who_may(rh):
    for path in ("/v1/chat/completions", "/v1/adapters/cron", "/v1/uploads", "/"):
        asked = {"origin": EVIL, "access-control-request-method": "PUT"}
        answer = await rh.client.options(path, headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_there_are_no_web_sockets(rh):
    """Browsers open them to anywhere."""
    sent = []

    async def send(message) -> None:
        sent.append(message["type"])

    async def receive():
        return {"type": "websocket.connect"}

    for path in ("/", "/v1/chat/completions"):
        scope = {"type": "websocket", "path": path, "headers": [(b"origin", EVIL.encode())]}
        await rh.app(scope | {"query_string": b"", "subprotocols": []}, receive, send)
    assert sent == ["websocket.close"] * 2


async def test_a_body_that_is_not_sent_as_json_is_415_and_says_how(rh):
    forms = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    paths = ["/v1/chat/completions", "/v1/feedback", "/v1/route", "/v1/adapters"]
    changes = [(None, path) for path in paths[1:]]
    for kind, path in [*product(forms, paths), *changes]:
        headers = {} if kind is None else {"content-type": kind}
        refused = await rh.client.post(path, content=json.dumps(chat("echo")), headers=headers)
        found = error(refused, 415)
        assert "-H 'content-type: application/json'" in found["message"]
        assert (kind or "nothing") in found["message"]
    assert rh.pool.terms == []


async def test_inference_takes_a_body_that_is_called_nothing_but_of_no_page_elsewhere(rh):
    """Browsers can send one unasked, and never without saying for whom."""
    body, path = json.dumps(chat("echo")).encode(), "/v1/chat/completions"
    assert (await rh.client.post(path, content=body)).status_code == 200
    refused = await rh.client.post(path, content=body, headers={"origin": EVIL})
    assert error(refused, 403)["code"] == "origin_not_allowed"


async def test_json_is_taken_however_it_is_spelt(rh):
    body = json.dumps(chat("echo")).encode("utf-8-sig")
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        sent = {"content-type": kind}
        answer = await rh.client.post("/v1/chat/completions", content=body, headers=sent)
        assert answer.status_code == 200


# -- open addresses ---------------------------------------------------------------------------


def settings_with(tmp_path, **changes) -> Settings:
    return parse_settings({"models": [ECHO], "store": {"data_dir": str(tmp_path)}} | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"http": {"host": "0.0.0.0"}}, "auth.open"),
        ({"http": {"host": "0.0.0.0"}, "auth": {"keys": KEYS}}, "auth.enabled"),
        ({"auth": {"enabled": True}}, "auth.keys"),
    ],
)
def test_a_cluster_that_everybody_could_enter_or_nobody_does_not_start(tmp_path, changes, named):
    settings = settings_with(tmp_path, **changes)
    assert named in (door_problem(settings) or "")
    with pytest.raises(ConfigError, match=named):
        build(json.loads(settings.model_dump_json()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"auth": LOCKED, "http": {"host": "0.0.0.0"}},
        {"auth": {"open": True}, "http": {"host": "0.0.0.0"}},
    ],
)
def test_one_that_is_meant_so_starts(tmp_path, changes):
    settings = settings_with(tmp_path, **changes)
    assert door_problem(settings) is None
    assert build(json.loads(settings.model_dump_json())) is not None


@pytest.mark.parametrize(
    ("serve", "changes", "starts"),
    [
        ("0.0.0.0", {}, False),
        ("0.0.0.0", {"http": {"host": "127.0.0.1"}}, False),
        ("::", {}, False),
        ("0.0.0.0", {"auth": LOCKED}, True),
        ("0.0.0.0", {"auth": {"open": True}}, True),
        ("127.0.0.1", {}, True),
        (None, {}, False),
        (None, {"http": {"host": "127.0.0.1"}}, True),
        (None, {"auth": LOCKED}, True),
    ],
)
def test_what_counts_is_where_ray_serve_listens(tmp_path, monkeypatch, serve, changes, starts):
    """Whoever has started it chose that; it may be that nobody has yet."""
    monkeypatch.setattr(app, "serve_host", lambda: serve)
    tree = {"models": [ECHO], "store": {"data_dir": str(tmp_path)}} | changes
    if starts:
        assert build(tree) is not None
    else:
        with pytest.raises(ConfigError, match=r"http_options.*auth\.open"):
            build(tree)


def test_the_page_tells_of_what_ray_serve_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "serve_host", lambda: "10.1.2.3")
    assert app.as_served(settings_with(tmp_path, auth={"open": True})).is_open
    monkeypatch.setattr(app, "serve_host", lambda: "127.0.0.1")
    assert not app.as_served(settings_with(tmp_path, auth={"open": True})).is_open


def written(tmp_path, **changes):
    file = tmp_path / "roundhouse.yaml"
    # JSON is YAML.
    file.write_text(
        json.dumps({"models": [ECHO], "store": {"data_dir": str(tmp_path / "data")}} | changes)
    )
    return file


def test_up_refuses_to_start_open_before_it_starts_anything(tmp_path):
    file = written(tmp_path, http={"host": "0.0.0.0"})
    refused = CliRunner().invoke(cli.app, ["up", str(file)])
    assert isinstance(refused.exception, ConfigError)
    assert "auth.open: true" in refused.exception.message
    assert not (tmp_path / "data").exists()


def doctor(tmp_path, **changes):
    findings = examine(written(tmp_path, **changes))
    return next(finding for finding in findings if finding.check == "API keys")


def test_doctor_says_who_may_enter(tmp_path):
    open_ = {"http": {"host": "0.0.0.0"}}
    refused = doctor(tmp_path, **open_)
    assert not refused.ok
    assert "auth.open" in refused.detail
    meant = doctor(tmp_path, **open_, auth={"open": True})
    assert meant.ok
    assert "whoever reaches" in meant.detail
    assert "makes the first one" in doctor(tmp_path, auth={"enabled": True}).detail
    assert "only this machine" in doctor(tmp_path).detail


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({}, False),
        ({"auth": {"open": True}, "http": {"host": "0.0.0.0"}}, True),
    ],
)
async def test_the_page_is_told_that_it_is_open(make_world, changes, is_open):
    async with make_world(**changes) as rh:
        assert (await rh.client.get("/v1/dashboard")).json()["is_open"] is is_open


# -- the first key ----------------------------------------------------------------------------


def test_the_first_key_is_shown_once_and_kept_as_a_hash(tmp_path):
    settings = settings_with(tmp_path / "data", auth={"enabled": True})
    shown: list[str] = []
    first = with_first_key(settings, shown.append)
    (key,) = shown
    file = tmp_path / "data" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert [(k.sha256, k.scope) for k in first.auth.keys] == [(hash_key(key), "admin")]
    assert with_first_key(settings, shown.append) == first
    assert shown == [key]
    assert door_problem(first) is None


def test_what_is_no_terminal_is_told_where_the_first_key_is(tmp_path, capsys):
    """A log keeps what it is told, for all who read it."""
    left = tmp_path / KEY_FILE
    left.write_text("an older one, for all to read")
    left.chmod(0o644)
    cli.show_first_key(tmp_path, "rh-secret")
    said = capsys.readouterr()
    assert "rh-secret" not in said.out + said.err
    assert str(left) in said.out
    assert left.read_text() == "rh-secret\n"
    assert stat.S_IMODE(left.stat().st_mode) == 0o600


def test_on_a_terminal_the_first_key_is_shown_and_left_nowhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.sys.stdout, "isatty", lambda: True)
    cli.show_first_key(tmp_path, "rh-secret")
    assert "rh-secret" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_keys_of_the_settings_are_all_there_are(tmp_path):
    for auth in ({}, {"keys": KEYS}, LOCKED):
        settings = settings_with(tmp_path / "data", auth=auth)
        assert with_first_key(settings, pytest.fail) is settings
    assert not (tmp_path / "data").exists()


def test_a_damaged_file_of_the_first_key_lets_nobody_in(tmp_path):
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ConfigError, match="remove it for a new first key"):
        with_first_key(settings_with(tmp_path, auth={"enabled": True}), pytest.fail)


# -- headers that nobody can read -------------------------------------------------------------

GARBAGE = b"\xff\xfe\x80 caf\xe9"
HEADERS = ["authorization", "x-request-id", "content-type", "accept", "origin", "x-forwarded-for"]
HEADERS += ["x-roundhouse-priority", "x-roundhouse-first-token-s", "x-roundhouse-adapters"]
HEADERS += ["x-roundhouse-tags", "x-roundhouse-min-confidence", "x-roundhouse-weight-latency"]


async def test_bytes_in_a_header_are_no_500(rh):
    for name in HEADERS:
        headers = JSON | {name: GARBAGE}
        body = json.dumps(chat("auto"))
        answer = await rh.client.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code < 500, (name, answer.text)


async def test_ray_serve_is_given_headers_that_it_can_read():
    """It reads some as UTF-8 before the application does; the rest is as it was sent."""
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope, receive, send) -> None:  # noqa: ARG001
        seen.extend(scope["headers"])

    for middleware in before_serve():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    sent = [(b"a", b"plain"), (b"b", "größe".encode()), (b"c", GARBAGE), (b"x-request-id", b" ")]
    ids = [(b"x-request-id", b"caf\xe9"), (b"x-request-id", b"another")]
    await app({"type": "http", "headers": [*sent, *ids]}, None, None)
    names = dict(seen)
    assert names[b"a"] == b"plain"
    assert names[b"b"] == "größe".encode()
    assert names[b"c"].decode() == GARBAGE.decode("latin-1")
    assert names[b"x-request-id"] == b"caf%E9"
    assert len(seen) == 4
