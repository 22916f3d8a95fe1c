import asyncio
import hashlib
import json
import shutil
import threading
import uuid

import model_signing
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter_store.files.blobs import digest_of
from adapter_store.files.filesystems import open_filesystem
from adapter_store.registration import Registrar
from adapter_store.registry import Stored
from adapter_store.store import Store
from cluster.adapters import Card
from cluster.errors import AdapterRefused, Conflict, InvalidRequest, ModelNotFound
from cluster.requests import Registration
from cluster.settings import StoreSettings
from tests.conftest import ECHO_FACTS, until

pytestmark = pytest.mark.redis


async def add(registrar: Registrar, folder, *, mode: str = "create", **fields) -> Stored:
    return await registrar.register(Registration(source=str(folder), **fields), mode=mode)


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
    assert stored.adapter.card.metadata == {}
    assert "'colour'" in stored.version.notices[0]
    assert (await store.registry.get("cron")).latest.rank == 4


@pytest.mark.parametrize(
    ("field", "value"), [("owner", "alice"), ("pinned", True), ("replicas", 10_000)]
)
async def test_whoever_made_it_does_not_say_whose_it_is(
    registrar, make_adapter, s3_bucket, field, value
):
    files, root = open_filesystem(s3_bucket)
    files.put(f"{make_adapter('cron', **{field: value})}/", f"{root}/cron/", recursive=True)
    sent = Registration(source=f"{s3_bucket}/cron")
    with pytest.raises(AdapterRefused, match=f"give {field} in the request") as refused:
        await registrar.register(sent, mode="create")
    assert refused.value.param == field
    meant = sent.model_copy(update={field: value})
    stored = await registrar.register(meant, mode="create")
    assert getattr(stored.adapter.card, field) == value


async def test_what_is_sent_wins_over_the_card(registrar, make_adapter):
    sent = Registration(source=str(make_adapter("cron")), name="timer", examples=("tick",))
    stored = await registrar.register(sent, mode="create")
    assert stored.adapter.name == "timer"
    assert stored.adapter.card.examples == ("tick",)


async def test_a_folder_without_a_card_needs_the_base_model(registrar, make_adapter):
    folder = make_adapter("cron")
    (folder / "card.json").unlink()
    with pytest.raises(InvalidRequest, match="base_model is required"):
        await registrar.register(Registration(source=str(folder)), mode="create")
    named = Registration(source=str(folder), base_model="echo", name="cron")
    assert (await registrar.register(named, mode="create")).adapter.name == "cron"


@pytest.mark.parametrize(
    "name", ["../up", "a//b", "\ud800", "", "auto", "base", "echo", "(other)", "a" * 256, "x@1"]
)
async def test_names_that_could_mislead_are_refused(registrar, make_adapter, name):
    with pytest.raises(InvalidRequest) as refused:
        sent = Registration(source=str(make_adapter()), name=name)
        await registrar.register(sent, mode="create")
    assert refused.value.param == "name"
    folder = make_adapter(name="cron")
    (folder / "card.json").write_text(json.dumps({"name": name, "base_model": "echo"}))
    with pytest.raises(InvalidRequest) as refused:
        await add(registrar, folder)
    assert refused.value.param == "name"


@pytest.mark.parametrize("card", ["[1]", "{bad", json.dumps({"examples": "text"})])
async def test_a_broken_card_is_refused(registrar, make_adapter, card):
    folder = make_adapter()
    (folder / "card.json").write_text(card)
    with pytest.raises(InvalidRequest):
        await registrar.register(Registration(source=str(folder), base_model="echo"), mode="create")


async def test_an_unknown_base_model_is_named(registrar, make_adapter):
    folder = make_adapter(base_model="llama")
    with pytest.raises(ModelNotFound, match="'llama'") as refused:
        await registrar.register(Registration(source=str(folder)), mode="create")
    assert refused.value.param == "base_model"


async def test_a_refusal_leaves_nothing_behind(store, registrar, make_adapter, tmp_path):
    folder = make_adapter(config={"r": 64})
    with pytest.raises(AdapterRefused):
        await registrar.register(Registration(source=str(folder)), mode="create")
    assert [a async for a in store.registry.all()] == []
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == []
    assert list((tmp_path / "data" / "staging").iterdir()) == []


async def test_the_same_files_are_stored_once(registrar, make_adapter):
    source = str(make_adapter("cron"))
    await registrar.register(Registration(source=source), mode="create")
    await registrar.register(Registration(source=source, name="twin"), mode="create")
    assert len(list(registrar.blobs.digests())) == 1
    with pytest.raises(Conflict):
        await registrar.register(Registration(source=source), mode="create")


async def test_a_damaged_blob_is_healed_by_registering_again(registrar, make_adapter):
    source = Registration(source=str(make_adapter("cron")))
    stored = await registrar.register(source, mode="create")
    with registrar.blobs.opened(stored.version.digest) as folder:
        (folder / "adapter_model.safetensors").unlink()
    await registrar.register(source, mode="upsert")
    assert await files_of(registrar, stored.version.digest) == stored.version.digest


async def test_a_caller_that_gives_up_leaves_no_half_blob(registrar, make_adapter, tmp_path):
    source = Registration(source=str(make_adapter("cron")))
    for pause_s in (0.0, 0.001, 0.005, 0.02):
        task = asyncio.create_task(registrar.register(source, mode="upsert"))
        await asyncio.sleep(pause_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    stored = await registrar.register(source, mode="upsert")
    assert await files_of(registrar, stored.version.digest) == stored.version.digest
    await until(lambda: not list((tmp_path / "data" / "staging").iterdir()))


@pytest.mark.parametrize("metadata", ["x", [1], 3])
async def test_metadata_must_be_an_object(registrar, make_adapter, metadata):
    folder = make_adapter("cron", metadata=metadata)
    with pytest.raises(InvalidRequest) as refused:
        await registrar.register(Registration(source=str(folder)), mode="create")
    assert refused.value.param == "metadata"


# -- what a version may have to prove --------------------------------------------------------------


async def test_expected_hashes_are_checked(registrar, make_adapter):
    folder = make_adapter("cron")
    right = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(AdapterRefused, match=right) as refused:
        await add(registrar, folder, sha256="0" * 64)
    assert refused.value.param == "sha256"
    assert (await add(registrar, folder, sha256=right.upper())).version.number == 1


async def test_another_base_model_is_refused_with_both_fingerprints(registrar, make_adapter):
    with pytest.raises(
        AdapterRefused, match=r"fingerprint ab12, echo here has echo-8x1"
    ) as refused:
        await add(registrar, make_adapter(), base_fingerprint="ab12")
    assert refused.value.param == "base_fingerprint"
    stored = await add(registrar, make_adapter(), base_fingerprint=ECHO_FACTS.fingerprint)
    assert stored.version.base_fingerprint == ECHO_FACTS.fingerprint


async def test_a_derived_version_names_its_parents(store, registrar, make_adapter):
    lineage = {"parents": ["cron@1", "sql@2"], "transformation": "composed"}
    stored = await add(registrar, make_adapter(), lineage=lineage)
    assert (await store.registry.get("cron")).latest.lineage == stored.version.lineage
    assert stored.version.lineage.parents == ("cron@1", "sql@2")


def sign(folder, private_key) -> None:
    model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key).sign(
        folder, folder / "model.sig"
    )


@pytest.fixture
def keys(tmp_path):
    """Two private keys, `ours` trusted by the registrar and `theirs` not."""
    made = {}
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        secret, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        made[name] = secret
    return made


@pytest.fixture
def strict(store, tmp_path, keys):
    settings = StoreSettings(
        data_dir=tmp_path / "strict",
        trusted_keys=(keys["ours"].with_suffix(".pem"),),
        require_signature=True,
    )
    return Registrar(store, settings)


async def test_a_trusted_signature_is_recorded(strict, make_adapter, keys):
    folder = make_adapter("cron")
    sign(folder, keys["ours"])
    assert (await add(strict, folder)).version.signed_by == "ours"


async def test_a_signature_of_a_stranger_or_of_other_files_is_refused(strict, make_adapter, keys):
    folder = make_adapter("cron")
    sign(folder, keys["theirs"])
    with pytest.raises(AdapterRefused, match="by no trusted key"):
        await add(strict, folder)
    folder = make_adapter("other")
    sign(folder, keys["ours"])
    make_adapter("other", rank=2)
    with pytest.raises(AdapterRefused, match="not of these files"):
        await add(strict, folder)
    (make_adapter("junk") / "model.sig").write_text("{")
    with pytest.raises(AdapterRefused, match="by no trusted key"):
        await add(strict, make_adapter("junk"))


async def test_a_signature_must_cover_the_weights(strict, make_adapter, keys, tmp_path):
    """One that was made for the card alone would let any weights in."""
    card_only = tmp_path / "card-only"
    card_only.mkdir()
    folder = make_adapter("cron")
    shutil.copy(folder / "card.json", card_only)
    sign(card_only, keys["ours"])
    shutil.copy(card_only / "model.sig", folder)
    with pytest.raises(AdapterRefused, match=r"does not cover adapter_config\.json"):
        await add(strict, folder)


async def test_where_signatures_are_required_an_unsigned_adapter_is_refused(strict, make_adapter):
    with pytest.raises(AdapterRefused, match=r"model\.sig is missing"):
        await add(strict, make_adapter())


# -- versions and revisions ------------------------------------------------------------------------


async def test_a_version_can_wait_for_its_rollout(registrar, make_adapter):
    await add(registrar, make_adapter("cron"))
    staged = await add(registrar, make_adapter("cron", seed=1), mode="update", promote=False)
    assert staged.adapter.aliases == {"latest": 2, "stable": 1}
    promoted = await add(registrar, make_adapter("cron", seed=2), mode="update")
    assert promoted.adapter.aliases == {"latest": 3, "stable": 3}
    assert promoted.adapter.previous == (1,)


async def test_a_change_of_the_card_during_a_registration_is_kept(store, registrar, make_adapter):
    await add(registrar, make_adapter("cron"))

    class Slow:
        """Holds the registration up just before its version is recorded."""

        def __init__(self, blobs) -> None:
            self.blobs, self.reached, self.go = blobs, threading.Event(), threading.Event()

        def commit(self, staged, digest=None):
            self.reached.set()
            assert self.go.wait(10)
            return self.blobs.commit(staged, digest)

    slow = registrar.blobs = Slow(registrar.blobs)
    adding = asyncio.create_task(add(registrar, make_adapter("cron", seed=1), mode="update"))
    await asyncio.to_thread(slow.reached.wait, 10)
    hidden = {"owner": "me", "visibility": "private"}
    await store.registry.change(
        "cron", lambda a: a.model_copy(update={"card": a.card.model_copy(update=hidden)})
    )
    slow.go.set()
    card = (await adding).adapter.card
    assert (card.owner, card.visibility) == ("me", "private")


async def test_the_same_weights_for_another_base_model_are_another_version(
    store, registrar, make_adapter
):
    """The base model was replaced under its name; registering again is the remedy that is told."""
    await add(registrar, make_adapter("cron"))
    await store.registry.put_base_model(ECHO_FACTS.model_copy(update={"fingerprint": "new"}))
    again = await add(registrar, make_adapter("cron"), mode="update")
    assert (again.version.number, again.version.base_fingerprint) == (2, "new")
    assert (await add(registrar, make_adapter("cron"), mode="update")).version.number == 2
    lineage = {"parents": ["cron@1"], "transformation": "ported"}
    ported = await add(registrar, make_adapter("cron"), mode="update", lineage=lineage)
    assert ported.version.number == 3


async def test_what_nobody_mentions_stays_as_it_was(registrar, make_adapter):
    await add(registrar, make_adapter("cron"), tags=["t"], owner="me", pinned=True)
    folder = make_adapter("cron", seed=1, description="from the folder")
    (folder / "card.json").write_text(json.dumps({"description": "from the folder"}))
    card = (await add(registrar, folder, mode="update", name="cron")).adapter.card
    assert (card.tags, card.owner, card.pinned) == (("t",), "me", True)
    assert (card.description, card.base_model) == ("from the folder", "echo")


async def test_a_writer_with_an_old_revision_is_refused(registrar, make_adapter):
    first = await add(registrar, make_adapter("cron"))
    again = {"mode": "update", "revision": first.adapter.revision}
    await add(registrar, make_adapter("cron", seed=1), **again)
    with pytest.raises(Conflict, match="changed meanwhile"):
        await add(registrar, make_adapter("cron", seed=2), **again)


# -- nothing half-registered -----------------------------------------------------------------------


class Fuzzer:
    """One way to spoil a good adapter, out of many."""

    names = st.text(max_size=20) | st.just("cron")
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    lists = st.lists(leaves, max_size=3)
    values = leaves | lists | st.dictionaries(st.text(max_size=3), leaves | lists, max_size=3)
    card = st.dictionaries(
        st.sampled_from(sorted(Card.model_fields)) | st.text(max_size=5), values, max_size=4
    )
    config = st.dictionaries(
        st.sampled_from(["peft_type", "r", "lora_alpha", "target_modules", "use_dora", "bias"]),
        values,
        max_size=2,
    )
    noise = st.none() | st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=40))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=Fuzzer.names, card=Fuzzer.card, config=Fuzzer.config, noise=Fuzzer.noise)
def test_whatever_is_sent_it_is_all_there_or_not_at_all(
    redis_url, make_adapter, tmp_path, name, card, config, noise
):
    async def run() -> None:
        namespace = f"fuzz-{uuid.uuid4().hex[:12]}"
        shutil.rmtree(tmp_path / "fuzzed", ignore_errors=True)
        place = StoreSettings(url=redis_url, namespace=namespace, data_dir=tmp_path / "fuzzed")
        store = Store(place)
        await store.registry.put_base_model(ECHO_FACTS)
        registrar = Registrar(store, place)
        folder = make_adapter("cron", config=config)
        (folder / "card.json").write_text(json.dumps({"base_model": "echo"} | card))
        if noise is not None:
            weights = folder / "adapter_model.safetensors"
            at, data = noise
            good = weights.read_bytes()
            weights.write_bytes(good[:at] + data + good[at + len(data) :])
        try:
            sent = Registration(source=str(folder), name=name)
            stored = await registrar.register(sent, mode="create")
        except InvalidRequest as e:
            assert e.message
            assert [a async for a in store.registry.all()] == []
            assert list(registrar.blobs.digests()) == []
            assert await store.registry.position() == ("0-0", 0)
        except ModelNotFound:
            assert card.get("base_model", "echo") != "echo"
        else:
            assert await store.registry.get(stored.adapter.name) == stored.adapter
            await files_of(registrar, stored.version.digest)
        assert list((tmp_path / "fuzzed" / "staging").glob("*")) == []
        await store.close()

    asyncio.run(run())
