import asyncio
import json

import pytest

from adapter_store.blobs import digest_of
from adapter_store.registration import Registrar, Registration
from cluster.errors import AdapterRefused, Conflict, InvalidRequest, ModelNotFound
from cluster.settings import StoreSettings
from tests.conftest import until

pytestmark = pytest.mark.redis


@pytest.fixture
def registrar(store, tmp_path):
    return Registrar(store, StoreSettings(data_dir=tmp_path / "root"))


async def files_of(registrar: Registrar, digest: str) -> str:
    """The digest of what is in the blob store under a digest."""
    with registrar.blobs.opened(digest) as folder:
        return digest_of(folder)


async def test_an_adapter_is_stored_under_its_hash(store, registrar, make_adapter):
    folder = make_adapter("cron", description="writes cron lines", colour="red")
    stored = await registrar.register(Registration(source=str(folder)), mode="create")
    assert stored.version.digest == digest_of(folder)
    assert await files_of(registrar, stored.version.digest) == stored.version.digest
    assert stored.adapter.card.description == "writes cron lines"
    assert stored.adapter.card.metadata == {"colour": "red"}
    assert (await store.get("cron")).latest.rank == 4


async def test_what_is_sent_wins_over_the_card(store, registrar, make_adapter):
    sent = Registration(source=str(make_adapter("cron")), name="timer", examples=("tick",))
    stored = await registrar.register(sent, mode="create")
    assert stored.adapter.name == "timer"
    assert stored.adapter.card.examples == ("tick",)


async def test_a_folder_without_a_card_needs_the_base_model(store, registrar, make_adapter):
    folder = make_adapter("cron")
    (folder / "card.json").unlink()
    with pytest.raises(InvalidRequest, match="base_model is required"):
        await registrar.register(Registration(source=str(folder)), mode="create")
    named = Registration(source=str(folder), base_model="echo", name="cron")
    assert (await registrar.register(named, mode="create")).adapter.name == "cron"


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "Cron", "a b", "", "auto", "base", "echo", "-x", "a" * 65, "x@1"]
)
async def test_names_that_could_mislead_are_refused(store, registrar, make_adapter, name):
    with pytest.raises(InvalidRequest) as refused:
        sent = Registration(source=str(make_adapter()), name=name)
        await registrar.register(sent, mode="create")
    assert refused.value.param == "name"


@pytest.mark.parametrize("card", ["[1]", "{bad", json.dumps({"examples": "text"})])
async def test_a_broken_card_is_refused(store, registrar, make_adapter, card):
    folder = make_adapter()
    (folder / "card.json").write_text(card)
    with pytest.raises(InvalidRequest):
        await registrar.register(Registration(source=str(folder), base_model="echo"), mode="create")


async def test_an_unknown_base_model_is_named(store, registrar, make_adapter):
    folder = make_adapter(base_model="llama")
    with pytest.raises(ModelNotFound, match="'llama'") as refused:
        await registrar.register(Registration(source=str(folder)), mode="create")
    assert refused.value.param == "base_model"


async def test_a_refusal_leaves_nothing_behind(store, registrar, make_adapter, tmp_path):
    folder = make_adapter(config={"r": 64})
    with pytest.raises(AdapterRefused):
        await registrar.register(Registration(source=str(folder)), mode="create")
    assert [a async for a in store.all()] == []
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []
    assert list((tmp_path / "root" / "staging").iterdir()) == []


async def test_the_same_files_are_stored_once(store, registrar, make_adapter, tmp_path):
    source = str(make_adapter("cron"))
    await registrar.register(Registration(source=source), mode="create")
    await registrar.register(Registration(source=source, name="twin"), mode="create")
    assert len(list(registrar.blobs.digests())) == 1
    with pytest.raises(Conflict):
        await registrar.register(Registration(source=source), mode="create")


async def test_a_damaged_blob_is_healed_by_registering_again(store, registrar, make_adapter):
    source = Registration(source=str(make_adapter("cron")))
    stored = await registrar.register(source, mode="create")
    with registrar.blobs.opened(stored.version.digest) as folder:
        (folder / "adapter_model.safetensors").unlink()
    await registrar.register(source, mode="upsert")
    assert await files_of(registrar, stored.version.digest) == stored.version.digest


async def test_a_caller_that_gives_up_leaves_no_half_blob(store, registrar, make_adapter, tmp_path):
    source = Registration(source=str(make_adapter("cron")))
    for pause_s in (0.0, 0.001, 0.005, 0.02):
        task = asyncio.create_task(registrar.register(source, mode="upsert"))
        await asyncio.sleep(pause_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    stored = await registrar.register(source, mode="upsert")
    assert await files_of(registrar, stored.version.digest) == stored.version.digest
    await until(lambda: not list((tmp_path / "root" / "staging").iterdir()))


@pytest.mark.parametrize("metadata", ["x", [1], 3])
async def test_metadata_must_be_an_object(store, registrar, make_adapter, metadata):
    folder = make_adapter("cron", metadata=metadata)
    with pytest.raises(InvalidRequest) as refused:
        await registrar.register(Registration(source=str(folder)), mode="create")
    assert refused.value.param == "metadata"
