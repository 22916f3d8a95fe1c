"""Where adapters may come from, and what may not leave its place."""

import asyncio
import functools
import http.server
import io
import shutil
import stat
import tarfile
import threading
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter_store.files.filesystems import open_filesystem
from adapter_store.files.inbound import fetching
from adapter_store.files.sources import Sources
from adapter_store.files.uploads import Uploads
from cluster.errors import (
    AdapterRefused,
    Conflict,
    InvalidRequest,
    NotFound,
    RoundhouseError,
    Unavailable,
)
from cluster.settings import StoreSettings

FILES = {"adapter_config.json", "adapter_model.safetensors", "card.json"}


@pytest.fixture
def store_settings(tmp_path):
    allowed = ("file", "s3", "gs", "hf", "https", "http", "upload")
    return StoreSettings(
        data_dir=tmp_path / "data",
        sources=allowed,
        max_adapter_bytes=1 << 20,
        allow_hosts=("127.0.0.1",),
    )


@pytest.fixture
def uploads(store_settings):
    return Uploads(store_settings)


@pytest.fixture
def sources(store_settings, uploads, tmp_path):
    yield Sources(store_settings, uploads)
    staging = tmp_path / "data" / "staging"
    left = list(staging.iterdir()) if staging.exists() else []
    assert left == [], "nothing must stay in the staging folder"


def fetch(sources: Sources, source, progress=lambda *_: None) -> set[str]:
    async def names() -> set[str]:
        async with sources.arrived(str(source), "", progress) as (folder, _):
            return {p.name for p in folder.iterdir()}

    return asyncio.run(names())


def refusal(sources: Sources, source) -> str:
    with pytest.raises(AdapterRefused) as refused:
        fetch(sources, source)
    assert refused.value.param == "source"
    return refused.value.message


def tarred(folder, mode: str = "w", prefix: str = "") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, prefix + file.name)
    return data.getvalue()


def zipped(folder) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in folder.iterdir():
            packed.write(file, f"inner/{file.name}")
    return data.getvalue()


# -- places -------------------------------------------------------------------------------------


def test_a_folder_by_its_path_and_by_its_url(sources, make_adapter):
    folder = make_adapter()
    assert fetch(sources, folder) == FILES
    assert fetch(sources, f"file://{folder}") == FILES
    spaced = folder.rename(folder.parent / "a b#c%20")
    assert fetch(sources, spaced.as_uri()) == FILES
    assert fetch(sources, spaced.as_uri().replace("file://", "file://localhost")) == FILES
    assert "of this machine" in refusal(sources, f"file://elsewhere{folder}")
    assert "%3F" in refusal(sources, f"file://{folder}?x=1")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_of_any_compression(sources, make_adapter, tmp_path, mode):
    archive = tmp_path / "any-name"
    archive.write_bytes(tarred(make_adapter(), mode, prefix="deep/in/"))
    assert fetch(sources, archive) == FILES


def test_a_zip(sources, make_adapter, tmp_path):
    archive = tmp_path / "cron.zip"
    archive.write_bytes(zipped(make_adapter()))
    assert fetch(sources, archive) == FILES


def test_progress_counts_bytes(sources, make_adapter):
    told = []
    fetch(sources, make_adapter(), lambda *progress: told.append(progress))
    _, done, total = [step for step in told if step[0].startswith("fetching ")][-1]
    assert done == total > 0


@pytest.fixture
def web(tmp_path):
    """A plain web server over a folder, on loopback."""
    root = tmp_path / "web"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_gives_a_folder_or_an_archive(sources, make_adapter, web):
    root, url = web
    make_adapter().rename(root / "cron")
    (root / "cron.tar.gz").write_bytes(tarred(root / "cron", "w:gz"))
    assert fetch(sources, f"{url}/cron") == FILES
    assert fetch(sources, f"{url}/cron/") == FILES
    assert fetch(sources, f"{url}/cron.tar.gz") == FILES
    assert fetch(sources, f"{url}/cron/?signature=a%2Fb") == FILES
    assert "missing" in refusal(sources, f"{url}/nothing")


def test_a_web_server_that_is_down_is_not_the_adapters_fault(sources):
    with pytest.raises(Unavailable, match="cannot be reached"):
        fetch(sources, "http://127.0.0.1:9/cron.zip")


def test_a_bucket(sources, make_adapter, s3_bucket):
    files, root = open_filesystem(s3_bucket)
    folder = make_adapter()
    files.put(f"{folder}/", f"{root}/cron/", recursive=True)
    files.pipe_file(f"{root}/packed.zip", zipped(folder))
    assert fetch(sources, f"{s3_bucket}/cron") == FILES
    assert fetch(sources, f"{s3_bucket}/packed.zip") == FILES
    assert "adapter_config.json is missing" in refusal(sources, f"{s3_bucket}/nowhere")


def test_a_pickle_in_a_bucket_is_named(sources, make_adapter, s3_bucket):
    files, root = open_filesystem(s3_bucket)
    folder = make_adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    files.put(f"{folder}/", f"{root}/pickled/", recursive=True)
    assert "adapter_model.bin is a pickle file" in refusal(sources, f"{s3_bucket}/pickled")


def test_a_google_bucket(sources, make_adapter, gcs_bucket):
    files, root = open_filesystem(gcs_bucket)
    for file in make_adapter().iterdir():
        files.pipe_file(f"{root}/cron/{file.name}", file.read_bytes())
    assert fetch(sources, f"{gcs_bucket}/cron") == FILES


def test_what_is_not_allowed_is_refused_by_name(sources):
    message = refusal(sources, "az://container/cron")
    assert "az:// is not a source here" in message
    assert "store.sources" in message


# -- hostile places -----------------------------------------------------------------------------


def test_a_link_that_leads_out_of_the_folder_is_refused(sources, make_adapter, tmp_path):
    folder, secret = make_adapter(), tmp_path / "secret"
    secret.write_text("{}")
    (folder / "card.json").unlink()
    (folder / "card.json").symlink_to(secret)
    assert "card.json leads out of" in refusal(sources, folder)


def test_a_link_inside_the_folder_is_fine(sources, make_adapter):
    folder = make_adapter()
    (folder / "card.json").rename(folder / "real.json")
    (folder / "card.json").symlink_to("real.json")
    assert fetch(sources, folder) == FILES


@pytest.mark.parametrize(
    "member", ["../adapter_config.json", "/etc/card.json", "a/../../card.json"]
)
def test_an_archive_that_leaves_its_place_is_refused(sources, tmp_path, member):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo(member))
    assert "leaves the archive" in refusal(sources, archive)


def test_a_link_in_an_archive_is_refused(sources, tmp_path):
    in_tar = tmp_path / "evil.tar"
    with tarfile.open(in_tar, "w") as tar:
        link = tarfile.TarInfo("adapter_config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "tar -h" in refusal(sources, in_tar)
    in_zip = tmp_path / "evil.zip"
    with zipfile.ZipFile(in_zip, "w") as packed:
        info = zipfile.ZipInfo("adapter_config.json")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    assert "is not a plain file" in refusal(sources, in_zip)


def test_an_archive_with_two_adapters_is_refused(sources, make_adapter, tmp_path):
    archive = tmp_path / "two.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(make_adapter("a"), "a")
        tar.add(make_adapter("b"), "b")
    assert "more than one adapter" in refusal(sources, archive)


def test_an_archive_that_swells_is_refused(sources, tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("adapter_model.safetensors", b"\0" * (2 << 20))
    assert "has more than" in refusal(sources, archive)
    # Though its directory lies about the size.
    data = bytearray(archive.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    assert refusal(sources, archive)


def test_a_header_that_would_fill_the_memory_is_refused(sources, tmp_path):
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        long = tarfile.TarInfo("././@LongLink")
        long.type, long.size = tarfile.GNUTYPE_LONGNAME, 3 << 20
        tar.addfile(long, io.BytesIO(b"\0" * long.size))
    assert "a header of 3145728 bytes" in refusal(sources, archive)


def test_a_file_that_is_too_large_is_refused(sources, make_adapter):
    folder = make_adapter()
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * (1 << 20) + b"\0")
    assert "adapter_model.safetensors is larger than" in refusal(sources, folder)
    folder = make_adapter("other")
    (folder / "card.json").write_bytes(b" " * ((1 << 20) + 1))
    assert "card.json is larger than" in refusal(sources, folder)


def test_missing_files_are_named(sources, make_adapter, tmp_path):
    folder = make_adapter()
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json is missing" in refusal(sources, folder)
    assert "is not a folder or an archive" in refusal(sources, tmp_path / "nowhere")


def test_a_pickle_checkpoint_is_named_with_the_remedy(sources, make_adapter):
    folder = make_adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle file" in refusal(sources, folder)


FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(noise=st.binary(max_size=300), position=st.integers(0, 4000), kind=st.integers(0, 3))
def test_no_archive_crashes_the_door(store_settings, make_adapter, tmp_path, noise, position, kind):
    """Whatever bytes are written over a good archive, the answer is files or a verdict."""
    folder = make_adapter()
    makers = (
        lambda: zipped(folder),
        lambda: tarred(folder),
        lambda: tarred(folder, "w:gz"),
        lambda: tarred(folder, "w:xz"),
    )
    good = makers[kind]()
    position = min(position, len(good))
    archive = tmp_path / "fuzzed"
    archive.write_bytes(good[:position] + noise + good[position + len(noise) :])
    staged = tmp_path / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        fetching.fetch(store_settings, str(archive), staged, lambda *_: None)
        assert {p.name for p in staged.iterdir()} <= {*FILES, "model.sig"}
    except AdapterRefused as e:
        assert e.message


@FUZZ
@given(source=st.text(max_size=80))
def test_no_source_crashes_the_door(sources, source):
    with pytest.raises(RoundhouseError):
        fetch(sources, source)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/a/cron", "cron"),
        ("/a/cron/", "cron"),
        ("s3://b/p/cron.tar.gz", "cron"),
        ("https://h/cron.zip?version=3", "cron"),
        ("hf://org/cron", "cron"),
    ],
)
def test_a_place_suggests_a_name(sources, source, name):
    assert sources.name_of(source) == name


# -- uploads ------------------------------------------------------------------------------------


def test_an_upload_comes_in_parts_and_is_an_archive(sources, uploads, make_adapter):
    data = tarred(make_adapter())
    upload = uploads.create(len(data), "cron.tar")
    offset = 0
    while offset < len(data):
        assert uploads.state(upload) == (offset, len(data))
        offset = uploads.append(upload, offset, data[offset : offset + 1000])
    assert fetch(sources, f"upload://{upload}") == FILES
    assert sources.name_of(f"upload://{upload}") == "cron"
    uploads.remove(upload)
    with pytest.raises(NotFound):
        fetch(sources, f"upload://{upload}")


def test_an_upload_goes_on_only_where_it_ended(uploads):
    upload = uploads.create(10)
    uploads.append(upload, 0, b"12345")
    with pytest.raises(RoundhouseError, match="has 5 bytes; go on from there"):
        uploads.append(upload, 0, b"12345")
    with pytest.raises(RoundhouseError, match="announced with 10"):
        uploads.append(upload, 5, b"123456")
    assert uploads.state(upload) == (5, 10)


def test_parts_that_overlap_are_seen(uploads, tmp_path):
    """As when a part that was given up arrives after all."""
    upload = uploads.create(10)
    uploads.append(upload, 0, b"12345")
    (tmp_path / "data" / "uploads" / upload / f"{3:020d}").write_bytes(b"45678")
    with pytest.raises(Conflict, match="overlap"):
        uploads.state(upload)


def test_an_unfinished_upload_cannot_be_registered(sources, uploads):
    upload = uploads.create(10)
    with pytest.raises(InvalidRequest, match="has 0 of 10 bytes"):
        fetch(sources, f"upload://{upload}")


def test_uploads_are_bounded_and_their_ids_are_no_paths(uploads):
    with pytest.raises(RoundhouseError, match="max_adapter_bytes"):
        uploads.create((1 << 20) + 1)
    with pytest.raises(NotFound):
        uploads.state("../../etc")
