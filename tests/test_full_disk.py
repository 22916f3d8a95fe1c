"""A disk that is full is the server's trouble: 507 or 503 with the cause, and nothing half-done."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from adapter_store.files.filesystems import storage
from cluster.errors import StorageFull, Unavailable
from deployments.engines import prepared
from tests.conftest import ECHO_FACTS
from tests.test_http import add, error

pytestmark = [pytest.mark.redis, pytest.mark.hostile]

# A file takes a page, however small it is.
_PAGES, _PAGE = 64, 4096


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A real one, of 64 pages; where only the superuser may mount one, there is no test."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={_PAGES * _PAGE}", "none", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "data") as folder:
        yield folder


def fill(disk: Path, *, but_pages: int) -> None:
    (disk / "ballast").write_bytes(b"x" * (_PAGES - but_pages) * _PAGE)


def leftovers(disk: Path) -> list[Path]:
    return [path for path in disk.rglob("*") if path.is_file() and path.name != "ballast"]


@pytest.mark.parametrize(
    ("pages", "where"), [(0, "store.data_dir"), (2, "store.data_dir"), (4, "the blob store")]
)
async def test_a_registration_that_finds_no_room_is_507_and_leaves_nothing(
    make_world, make_adapter, disk, pages, where
):
    async with make_world() as rh:
        fill(disk, but_pages=pages)
        refused = error(await add(rh, make_adapter("cron")), 507)
        assert refused["code"] == "storage_full"
        assert where in refused["message"]
        assert "No space left" in refused["message"]
        assert str(disk) not in refused["message"]
        assert leftovers(disk) == []
        assert (await rh.client.get("/v1/adapters")).json()["data"] == []
        (disk / "ballast").unlink()
        assert (await add(rh, make_adapter("cron"))).status_code == 201


async def test_an_upload_that_finds_no_room_is_507_and_goes_on_when_there_is(make_world, disk):
    async with make_world() as rh:
        data = b"x" * 20 * _PAGE
        begun = await rh.client.post("/v1/uploads", headers={"upload-length": str(len(data))})
        fill(disk, but_pages=10)
        part = {"content-type": "application/offset+octet-stream", "upload-offset": "0"}
        place = begun.headers["location"]
        error(await rh.client.patch(place, content=data, headers=part), 507)
        (disk / "ballast").unlink()
        part["upload-offset"] = there = (await rh.client.head(place)).headers["upload-offset"]
        sent = await rh.client.patch(place, content=data[int(there) :], headers=part)
        assert sent.headers["upload-offset"] == str(len(data))


async def test_a_node_without_room_is_503_and_says_why(make_world, make_adapter, tmp_path):
    async with make_world() as rh:
        with small_disk(tmp_path / "node") as node:
            fill(node, but_pages=0)
            refused = error(await add(rh, make_adapter("cron")), 503)
            assert "No space left" in refused["message"]


def test_what_the_engine_prepares_is_no_fault_of_the_adapter_when_the_disk_is_full(
    make_adapter, disk
):
    fill(disk, but_pages=0)
    with pytest.raises(OSError, match="No space left") as raised:
        prepared.write(make_adapter("cron"), disk, ECHO_FACTS, torch.float32, transpose_b=False)
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_places_of_ours_tell_a_full_disk_from_the_rest(number):
    with pytest.raises(StorageFull), storage("it"):
        raise OSError(number, "no room")
    with pytest.raises(Unavailable) as other, storage("it"):
        raise OSError(errno.EIO, "broken")
    assert not isinstance(other.value, StorageFull)
