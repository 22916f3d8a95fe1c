"""Strangers' places and files: what they cannot reach, fill or hold up."""

import asyncio
import contextlib
import ctypes
import dataclasses
import errno
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from adapter_store.files.inbound import confined as confined_module
from adapter_store.files.inbound.confined import MB, MODULE, Bounds, Overrun, confined
from adapter_store.files.inbound.forkserver import Children
from adapter_store.files.inbound.guard import Reach
from adapter_store.files.inbound.web import WebSite
from adapter_store.files.sources import Sources
from adapter_store.files.uploads import Uploads
from cluster.addresses import host_entry
from cluster.errors import AdapterRefused, RoundhouseError, SourceMissing, Unavailable
from cluster.members import Arrival, Ingress
from cluster.settings import StoreSettings
from tests.conftest import until
from tests.hostile import rounds
from tests.strange_servers import redirect, say, strange_server
from tests.test_http import add, error

pytestmark = pytest.mark.hostile

# A machine that stands still for seconds counts them as its processes' own.
SMALL = Bounds(memory_bytes=64 * MB, file_bytes=MB, cpu_s=10, wall_s=40, stall_s=40)
FETCHING = dataclasses.replace(SMALL, reach=Reach())


def nothing(*_) -> None:
    """Nobody follows the progress."""


@pytest.fixture
def opened(tmp_path):
    """Sources by settings of the store."""

    def sources(**changes) -> Sources:
        settings = StoreSettings(
            data_dir=tmp_path / "data",
            sources=("file", "http", "https", "s3", "hf", "az"),
            **changes,
        )
        return Sources(settings, Uploads(settings))

    return sources


async def fetched(sources: Sources, source, progress=nothing) -> dict[str, bytes]:
    async with sources.arrived(str(source), "", progress) as (folder, _):
        return {file.name: file.read_bytes() for file in folder.iterdir()}


async def refusal(sources: Sources, source) -> str:
    with pytest.raises(AdapterRefused) as refused:
        await fetched(sources, source)
    return refused.value.message


def children_of_this() -> list[psutil.Process]:
    """Those that do a piece of work now."""
    return [child for server in servers() for child in server.children()]


def servers() -> list[psutil.Process]:
    """Where children come from; one, unless it died."""
    processes = psutil.Process().children()
    return [p for p in processes if p.status() != psutil.STATUS_ZOMBIE and MODULE in p.cmdline()]


# -- where connections may go -------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2606:4700::5efe:127.0.0.1",
        "2606:4700::200:5efe:169.254.169.254",
        "2001:db8::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00:ec2::254",
        "ff02::1",
    ],
)
def test_only_public_addresses_are_reached(host):
    assert not Reach().permits(host, 80)
    assert Reach(is_free=True).permits(host, 80)


@pytest.mark.parametrize("host", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_reached(host):
    assert Reach().permits(host, 443)


def test_what_an_operator_allows_is_reached():
    private = Reach(is_private=True)
    for host in ("127.0.0.1", "::1", "10.1.2.3", "fd12::1", "::ffff:127.0.0.1"):
        assert private.permits(host, 80), host
    for host in (
        "169.254.169.254",
        "192.0.0.192",
        "192.88.99.1",
        "fd00:ec2::254",
        "0.0.0.0",
        "224.0.0.1",
        "64:ff9b::1",
    ):
        assert not private.permits(host, 80), host
    named = Reach(hosts=tuple(map(host_entry, ("10.0.0.0/8", "localhost:81", "[fd12::1]:82"))))
    assert named.permits("10.9.9.9", 1)
    assert named.permits("127.0.0.1", 81)
    assert not named.permits("127.0.0.1", 82)
    assert named.permits("fd12::1", 82)
    assert not named.permits("fd12::2", 82)


@pytest.mark.parametrize("entry", ["10.0.0.7/8", "a b", "host:99999", "", "host:", "::1:x", "a/b"])
def test_a_host_that_cannot_be_one_is_refused(entry):
    with pytest.raises(ValueError, match="must be a name, an address or a network"):
        StoreSettings(allow_hosts=(entry,))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::ffff:127.0.0.1]",
    ],
)
async def test_a_redirect_leads_to_no_other_server_of_this_machine(opened, host):
    with strange_server(say(b'{"SecretAccessKey": "xyz"}')) as secret:
        to = f"http://{host}:{secret.port}/latest/meta-data/"
        with strange_server(redirect(to)) as first, strange_server(redirect(first.url)) as door:
            sources = opened(allow_hosts=(f"127.0.0.1:{first.port}", f"127.0.0.1:{door.port}"))
            # Some forms are no addresses at all to the client: that is said otherwise.
            with pytest.raises(RoundhouseError, match=r"store\.allow_hosts|Invalid IPv4 address"):
                await fetched(sources, f"{door.url}/cron")
            assert first.asked
        assert secret.asked == []


@pytest.mark.parametrize("to", ["http://169.254.169.254/latest", "http://[fd00:ec2::254]/latest"])
async def test_a_redirect_leads_to_no_metadata_service(opened, to):
    with strange_server(redirect(to)) as door:
        sources = opened(allow_private=True)
        assert "from where nothing is fetched" in await refusal(sources, f"{door.url}/cron")


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
async def test_a_redirect_leads_to_no_other_scheme(opened, to):
    with strange_server(redirect(to)) as door:
        assert await refusal(opened(allow_private=True), f"{door.url}/cron")


def test_a_redirect_from_https_leads_to_no_http():
    with (
        pytest.raises(AdapterRefused, match="http is no kind of source here"),
        WebSite(["https"]).opened("http://example.com/cron"),
    ):
        pass


async def test_redirects_end(opened):
    with strange_server(lambda request: redirect(request.path + "x")(request)) as door:
        message = await refusal(opened(allow_private=True), f"{door.url}/cron")
        assert "leads on more than 5 times" in message
        assert len(door.asked) == 6


async def test_what_a_first_host_was_told_no_second_one_hears(opened):
    heard = []

    def listen(request):
        heard.append(request.headers.get("authorization"))
        request.send_error(404)

    with strange_server(listen) as second, strange_server(redirect(second.url)) as first:
        source = f"http://user:secret@127.0.0.1:{first.port}/cron"
        with pytest.raises(SourceMissing):
            await fetched(opened(allow_private=True), source)
    assert heard
    assert set(heard) == {None}


async def test_a_mirror_of_the_hub_is_reached_and_leads_to_nothing_else(opened, monkeypatch):
    with strange_server(say(b"{}")) as secret, strange_server(redirect(secret.url)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(AdapterRefused, match=r"leads to 127\.0\.0\.1"):
            await fetched(opened(), "hf://org/cron")
        assert hub.asked
        assert secret.asked == []


def _rebound(port: int, _progress) -> list[str]:
    """As a child: a name that is public when it is looked up first, and this machine then."""
    answers = iter(["1.1.1.1"])

    def resolve(_host, at, *_, **__):
        address = next(answers, "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, at or port))]

    socket.getaddrinfo = resolve
    first = [sockaddr[0] for *_, sockaddr in socket.getaddrinfo("rebound.test", port)]
    assert first == ["1.1.1.1"]
    with WebSite(["http"]).opened(f"http://rebound.test:{port}/"):
        raise AssertionError("it was connected to")


async def test_a_name_that_changes_between_check_and_connection_leads_nowhere():
    bounds = Bounds(256 * MB, MB, 10, 20, 20, reach=Reach())
    with strange_server(say(b"secret")) as secret:
        with pytest.raises(AdapterRefused, match=r"leads to 127\.0\.0\.1"):
            await confined(_rebound, secret.port, bounds=bounds, progress=nothing)
        assert secret.asked == []


@pytest.mark.parametrize(
    "source",
    [
        "s3://bucket/x::file:///etc",
        "az://container@other.dfs.core.windows.net/x",
        "az://other.dfs.core.windows.net/container/x",
    ],
)
async def test_places_are_not_chained(opened, source):
    with pytest.raises(AdapterRefused, match="names one place"):
        await fetched(opened(), source)
    with pytest.raises(RoundhouseError):
        await fetched(opened(), "http://x::file:///etc/hosts")


# -- children -----------------------------------------------------------------------------------


def _fill(_progress) -> int:
    return len(bytearray(1 << 30))


def _spin(_progress) -> None:
    while True:
        pass


def _write(path: Path, _progress) -> None:
    path.write_bytes(b"x" * (2 * MB))


def _sleep(seconds: float, progress) -> str:
    progress("sleeping", 0, None)
    time.sleep(seconds)
    return "awake"


def _connect(port: int, _progress) -> None:
    socket.create_connection(("127.0.0.1", port), 5).close()


def _told(_progress) -> dict[str, str]:
    return dict(os.environ)


def _die(_progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("work", [_fill, _spin, _die])
async def test_a_child_that_takes_too_much_is_ended_and_the_next_one_works(work):
    with pytest.raises(Overrun):
        await confined(work, bounds=dataclasses.replace(SMALL, cpu_s=1), progress=nothing)
    assert await confined(_sleep, 0.0, bounds=SMALL, progress=nothing) == "awake"
    await until(lambda: not children_of_this())


async def test_a_child_writes_no_more_than_it_may(tmp_path):
    with pytest.raises(RuntimeError, match="File too large"):
        await confined(_write, tmp_path / "file", bounds=SMALL, progress=nothing)
    assert (tmp_path / "file").stat().st_size <= MB


async def test_a_child_without_network_has_none():
    with strange_server(say(b"")) as server, pytest.raises(AdapterRefused, match="leads to"):
        await confined(_connect, server.port, bounds=SMALL, progress=nothing)


async def test_who_is_cancelled_takes_the_child_along():
    begun = asyncio.Event()
    task = asyncio.create_task(
        confined(_sleep, 60.0, bounds=SMALL, progress=lambda *_: begun.set())
    )
    await begun.wait()
    assert len(children_of_this()) == 1
    task.cancel()
    await until(lambda: not children_of_this())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_child_has_the_environment_of_now_and_no_client_that_passes_the_guard(monkeypatch):
    monkeypatch.setenv("SAID", "now")
    told = await confined(_told, bounds=FETCHING, progress=nothing)
    assert told["SAID"] == "now"
    assert told["HF_HUB_DISABLE_XET"] == "1"


def _all_told(_progress) -> str:
    """The environment, and what the process was started with, which outlives its removal."""
    return f"{dict(os.environ)} {Path('/proc/self/environ').read_text()}"


async def test_a_child_is_told_no_secret_that_it_does_not_need(monkeypatch):
    monkeypatch.setenv("ROUNDHOUSE_STORE__URL", "redis://:store-secret@redis")
    monkeypatch.setenv("HF_TOKEN", "hub-secret")
    for server in servers():  # the next one starts with these
        server.kill()
        await until(lambda server=server: server.status() == psutil.STATUS_ZOMBIE)
    told = await confined(_all_told, bounds=FETCHING, progress=nothing)
    assert "hub-secret" in told
    assert "store-secret" not in told
    assert "secret" not in await confined(_all_told, bounds=SMALL, progress=nothing)


async def test_a_child_is_not_told_the_stores_url(opened, make_adapter, monkeypatch):
    told = []

    async def listen(*args, **_):
        told.append(pickle.dumps(args))
        return {}

    monkeypatch.setattr("adapter_store.files.sources.confined", listen)
    await fetched(opened(url="redis://:store-secret@redis"), make_adapter())
    assert told
    assert b"store-secret" not in b"".join(told)


def _leave(way: str, _progress) -> None:
    {
        "subprocess": lambda: subprocess.run(["true"], check=True),
        "system": lambda: os.system("true"),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "library": lambda: ctypes.CDLL("libc.so.6"),
    }[way]()


@pytest.mark.parametrize("way", ["subprocess", "system", "fork", "exec", "spawn", "library"])
@pytest.mark.parametrize("reach", [None, Reach()], ids=["looking", "fetching"])
async def test_a_child_starts_no_other_process_and_loads_no_library(way, reach):
    bounds = dataclasses.replace(SMALL, reach=reach)
    with pytest.raises(RuntimeError, match="is not for work on strangers' files"):
        await confined(_leave, way, bounds=bounds, progress=nothing)


def _connect_natively(port: int, folder: Path, _progress) -> list[Any]:
    """Past Python's sockets, by a library that every Python has loaded; and what files are like."""
    address = struct.pack("=HHI8x", socket.AF_INET, socket.htons(port), 0x0100007F)
    with socket.socket() as wire:
        failed = ctypes.pythonapi.connect(wire.fileno(), address, len(address))
    (folder / "written").write_bytes((folder / "read").read_bytes())
    status = Path("/proc/self/status").read_text()
    owner = (folder / "written").stat().st_uid
    return [
        str(Path("/proc/self/ns/net").readlink()),
        failed,
        owner,
        os.getuid(),
        "NoNewPrivs:\t1" in status,
    ]


async def test_native_code_has_no_network_where_the_kernel_allows_it(tmp_path):
    (tmp_path / "read").write_text("x")
    with strange_server(say(b"")) as server:
        place, failed, owner, user, is_held = await confined(
            _connect_natively, server.port, tmp_path, bounds=SMALL, progress=nothing
        )
    assert owner == user == os.getuid() == (tmp_path / "written").stat().st_uid
    assert is_held
    if place == str(Path("/proc/self/ns/net").readlink()):
        pytest.skip("this kernel lets nobody leave the network")
    assert failed == -1


async def test_a_server_that_dies_is_nobodys_fault():
    work = [
        asyncio.create_task(confined(_sleep, 1.0, bounds=SMALL, progress=nothing)) for _ in range(3)
    ]
    await until(lambda: len(children_of_this()) == 3)
    servers()[0].kill()
    assert await asyncio.gather(*work) == ["awake"] * 3


async def test_one_that_dies_again_and_again_is_unavailable():
    work = asyncio.create_task(confined(_sleep, 60.0, bounds=SMALL, progress=nothing))
    for _ in range(2):
        await until(children_of_this, 60)
        (server,) = servers()
        server.kill()
        await until(lambda server=server: server.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(Unavailable, match="try again"):
        await work


async def test_a_child_that_is_long_in_coming_is_nobodys_fault(monkeypatch):
    await confined(_sleep, 0.0, bounds=SMALL, progress=nothing)
    (server,) = servers()
    monkeypatch.setattr(confined_module, "_START_S", 0.1)
    server.suspend()
    try:
        with pytest.raises(Unavailable, match="the machine is busy"):
            await confined(_sleep, 0.0, bounds=SMALL, progress=nothing)
    finally:
        server.resume()


def test_a_machine_that_has_no_process_left_says_so(monkeypatch):
    def fork():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    ours, theirs = socket.socketpair()
    with ours:
        assert not Children().begin(1, theirs)
        kind, message, _ = json.loads(ours.makefile().read())["error"]
    assert kind == "Unavailable"
    assert "no child can be made" in message


async def test_a_server_that_cannot_be_started_is_started_for_the_next(monkeypatch):
    await confined_module.warm()
    (server,) = servers()
    server.kill()
    await until(lambda: server.status() == psutil.STATUS_ZOMBIE)
    with monkeypatch.context() as patch:
        refused = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        patch.setattr(subprocess, "Popen", Mock(side_effect=refused))
        with pytest.raises(Unavailable, match="cannot be started"):
            await confined_module.warm()
    await confined_module.warm()


def test_a_child_that_the_kernel_holds_keeps_nobody_waiting(monkeypatch):
    """Such as one that waits for a disk: a signal ends it later."""
    children = Children()
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen(["sleep", "60"]) as held:
        monkeypatch.setattr(os, "fork", lambda: held.pid)
        children.begin(1, theirs)
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", nothing)
            children.end(1)
            children.reap()
        held.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, held.pid, os.WEXITED | os.WNOWAIT)
        children.reap()
        assert json.loads(ours.makefile().read()) == {"ended": signal.SIGKILL}


async def test_a_server_that_was_killed_has_a_successor():
    await confined(_sleep, 0.0, bounds=SMALL, progress=nothing)
    (server,) = servers()
    server.kill()
    await until(lambda: server.status() == psutil.STATUS_ZOMBIE)
    assert await confined(_sleep, 0.0, bounds=SMALL, progress=nothing) == "awake"


def test_children_die_with_their_parent():
    program = (
        "import asyncio; from tests.test_inbound import *; from tests.test_inbound import _sleep\n"
        "asyncio.run(confined(_sleep, 60.0, bounds=SMALL, progress=lambda *_: print('x', flush=1)))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline()
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 2
        parent.kill()
    assert psutil.wait_procs(family, timeout=10)[1] == []


# -- files that ask for too much ----------------------------------------------------------------


def sparse_bomb(entries: int) -> bytes:
    """A tar of a few kilobytes, whose one file has a map of millions of holes."""
    holes = b"%d\n" % entries + b"0\n0\n" * entries
    holes += b"\0" * (-len(holes) % 512)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("adapter_model.safetensors")
        member.size = len(holes)
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "adapter_model.safetensors",
            "GNU.sparse.realsize": "8",
        }
        tar.addfile(member, io.BytesIO(holes))
    return data.getvalue()


def directory_bomb(entries: int) -> bytes:
    """A zip that is a directory of very many files alone."""
    name = b"x" * 40
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 9, len(name), *[0] * 6) + name
    directory = record * entries
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 0, 0)


@pytest.mark.parametrize(
    "bomb", [lambda: sparse_bomb(3_000_000), lambda: directory_bomb(600_000)], ids=["tar", "zip"]
)
async def test_an_archive_that_fills_the_memory_is_refused_elsewhere(opened, tmp_path, bomb):
    archive = tmp_path / "bomb"
    archive.write_bytes(bomb())
    here = psutil.Process()
    before = here.memory_info().rss
    message = await refusal(opened(), archive)
    assert "asks for" in message or "more than" in message
    assert here.memory_info().rss - before < 64 * MB


async def test_headers_that_lie_or_nest_are_refused(opened, make_adapter):
    folder = make_adapter()
    (folder / "card.json").write_text("[" * 400_000)
    assert "card.json is not JSON" in await refusal(opened(), folder)
    (folder / "card.json").unlink()
    os.mkfifo(folder / "card.json")
    assert "not a plain file" in await refusal(opened(), folder)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
async def test_members_that_are_no_files_are_refused(opened, tmp_path, kind):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("adapter_model.safetensors")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    assert "is not a plain file" in await refusal(opened(), archive)


# -- files that change while they are read ------------------------------------------------------


@contextlib.contextmanager
def flipping(path: Path, other: Path):
    """In a thread: what lies at a path is in turn itself, and a link to another."""
    is_over = threading.Event()
    real, link = path.with_name(path.name + ".real"), path.with_name(path.name + ".link")
    path.rename(real)
    link.symlink_to(other)

    def flip() -> None:
        while not is_over.is_set():
            for shown in (real, link):
                shown.rename(path)
                path.rename(shown)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("what", ["file", "folder", "parent"])
async def test_a_link_that_comes_and_goes_is_never_read(opened, make_adapter, tmp_path, what):
    secret = tmp_path / "secret"
    inside = tmp_path / "shelf" / "cron"
    for folder, card in ((inside, "{}"), (secret / "cron", '{"description": "secret"}')):
        folder.parent.mkdir()
        make_adapter().rename(folder)
        (folder / "card.json").write_text(card)
    flipped, other = {
        "file": (inside / "card.json", secret / "cron" / "card.json"),
        "folder": (inside, secret / "cron"),
        "parent": (inside.parent, secret),
    }[what]
    sources = opened()
    with flipping(flipped, other):
        for _ in range(rounds(30, 650)):
            with contextlib.suppress(AdapterRefused):
                found = await fetched(sources, inside)
                assert b"secret" not in found.get("card.json", b"")


async def test_a_folder_over_a_link_is_taken_where_the_settings_say_so(
    opened, make_adapter, tmp_path
):
    (tmp_path / "link").symlink_to(make_adapter())
    message = await refusal(opened(), tmp_path / "link")
    assert "leads over a link" in message
    assert str(make_adapter()) in message
    assert await fetched(opened(follow_links=True), tmp_path / "link")


async def test_a_snapshot_of_the_hubs_cache_is_a_folder(opened, make_adapter, tmp_path):
    repository = tmp_path / "models--org--cron"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    make_adapter().rename(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert len(await fetched(opened(), snapshot)) == 3
    (below := snapshot / "below").mkdir()
    for file in blobs.iterdir():
        (below / file.name).symlink_to(f"../../../blobs/{file.name}")
    assert len(await fetched(opened(), below)) == 3
    (snapshot / "card.json").unlink()
    (snapshot / "card.json").symlink_to("../../../secret")
    assert "leads out of" in await refusal(opened(), snapshot)


# -- servers that are slow, or never end --------------------------------------------------------


def drip(request) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(600):
        request.wfile.write(b"x")
        time.sleep(0.05)


def endless(request) -> None:
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("transfer-encoding", "chunked")
    request.end_headers()
    while True:
        request.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


async def test_a_server_that_drips_is_given_up(opened):
    with strange_server(drip) as server:
        sources = opened(allow_private=True, fetch_timeout_s=1)
        with pytest.raises(Unavailable, match="it took longer than 1 s"):
            await fetched(sources, f"{server.url}/cron")
    await until(lambda: not children_of_this())


async def test_a_server_that_says_nothing_is_given_up(opened):
    with strange_server(lambda _: server.gone.wait(20)) as server:
        sources = opened(allow_private=True, fetch_stall_s=0.5)
        with pytest.raises(Unavailable, match=r"longer than 0\.5 s without progress"):
            await fetched(sources, f"{server.url}/cron")


async def test_a_body_without_end_is_cut_off(opened):
    with strange_server(endless) as server:
        sources = opened(allow_private=True, max_adapter_bytes=MB)
        assert "is larger than" in await refusal(sources, f"{server.url}/cron")
        assert "is larger than" in await refusal(sources, f"{server.url}/cron.zip")


async def test_lengths_that_lie_bring_nothing_in(opened):
    with strange_server(say(b"{}", length=1000)) as server, pytest.raises(Unavailable):
        await fetched(opened(allow_private=True), f"{server.url}/cron")
    with strange_server(say(b"{}" + b"x" * 1000, length=2)) as server:
        found = await fetched(opened(allow_private=True), f"{server.url}/cron")
        assert set(found.values()) == {b"{}"}


async def test_a_silent_server_holds_up_nobody_elses_registration(
    make_world, make_adapter, tmp_path
):
    store = {
        "data_dir": str(tmp_path / "data"),
        "sources": ["file", "http"],
        "allow_hosts": ["127.0.0.1"],
    }
    with strange_server(lambda _: server.gone.wait(20)) as server:
        async with make_world(store=store) as it:
            silent = [
                asyncio.create_task(add(it, f"{server.url}/{i}?signature=secret", name=f"x{i}"))
                for i in range(6)
            ]
            await until(lambda: len(server.asked) == 4)
            added = await asyncio.wait_for(add(it, make_adapter()), 10)
            assert added.status_code == 201, added.text
            arrivals = it.admin.arrivals()
            assert len(arrivals) == 6
            assert {a.source for a in arrivals} == {f"{server.url}/{i}" for i in range(6)}
            for task in silent:
                task.cancel()
            await until(lambda: not children_of_this())
            assert it.admin.arrivals() == ()
            assert list((tmp_path / "data" / "staging").iterdir()) == []


async def test_a_process_that_stops_ends_its_fetches(make_world, tmp_path):
    store = {"sources": ["http"], "allow_private": True, "data_dir": str(tmp_path / "data")}
    with strange_server(lambda _: server.gone.wait(20)) as server:
        async with make_world(store=store) as it:
            task = asyncio.create_task(add(it, f"{server.url}/cron"))
            await until(lambda: server.asked)
        # The server of children is told, and ends it.
        await until(lambda: not children_of_this())
        assert list((tmp_path / "data" / "staging").iterdir()) == []
        await asyncio.gather(task, return_exceptions=True)


async def test_who_hangs_up_ends_the_fetch(make_world, tmp_path):
    with strange_server(lambda _: server.gone.wait(20)) as server:
        said = [
            {"type": "http.request", "body": json.dumps({"source": server.url}).encode()},
        ]

        async def receive():
            if said:
                return said.pop()
            await until(lambda: server.asked)
            return {"type": "http.disconnect"}

        async def send(_):
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/adapters",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        store = {"sources": ["http"], "allow_private": True, "data_dir": str(tmp_path / "data")}
        async with make_world(store=store) as it:
            await asyncio.wait_for(it.app(scope, receive, send), 10)
            await until(lambda: not children_of_this())


async def test_a_bomb_is_a_400_by_http(make_world, tmp_path):
    (tmp_path / "bomb.zip").write_bytes(directory_bomb(600_000))
    async with make_world() as it:
        refused = error(await add(it, tmp_path / "bomb.zip"), 400)
        assert refused["code"] == "adapter_refused"
        assert refused["param"] == "source"


async def test_admins_see_what_every_ingress_brings_in(make_world):
    async with make_world() as it:
        for name in ("one", "two"):
            arrival = Arrival(source=f"s3://bucket/{name}", owner="", since=1.0)
            await it.store.members.renew(Ingress(id=name, arrivals=(arrival,)))
        members = (await it.client.get("/v1/cluster")).json()["members"]
        sources = {a["source"] for m in members for a in m.get("arrivals", ())}
        assert sources == {"s3://bucket/one", "s3://bucket/two"}
