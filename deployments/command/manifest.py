"""Adapters declared in a file, and what has to change for the cluster to hold them so.

What was applied is marked in the adapter's metadata: the set it belongs to, and the source its
version came from. So a source is fetched once, a rollback stays, and pruning touches no adapter
that came in another way.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, field_validator

from cluster.adapters import Card
from cluster.errors import InvalidRequest, parse
from cluster.names import AdapterName
from cluster.requests import Registration, RolloutRequest
from cluster.values import Value

MARK = "applied"


class Entry(Registration):
    """One adapter: what a registration takes, and how a new version takes over."""

    name: AdapterName
    source: Annotated[str, StringConstraints(min_length=1)]
    promote: Literal[True] = Field(True, exclude=True)
    revision: None = Field(None, exclude=True)
    rollout: RolloutRequest | None = Field(
        None, description="for new versions; without, they take over at once"
    )

    @field_validator("metadata")
    @classmethod
    def _leaves_the_mark(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        if metadata and MARK in metadata:
            raise ValueError(f"the key {MARK!r} is kept for what was applied; use another")
        return metadata

    @property
    def is_local(self) -> bool:
        return "://" not in self.source

    @property
    def origin(self) -> str:
        """What the weights are known by: the files' own hash, or the URL that names them."""
        if self.is_local:
            return f"sha256:{_hash_of(Path(self.source))}"
        return f"{self.source}#{self.sha256}" if self.sha256 else self.source

    def given(self) -> dict[str, Any]:
        """The fields of the card that the file gives."""
        known = Card.model_fields.keys() - {"name", "metadata"}
        return self.model_dump(include=known, exclude_none=True)

    def card(self, *within: str) -> Card:
        """With stand-ins where the file leaves fields to others; raises InvalidRequest."""
        return parse(Card, {"base_model": "any"} | self.given() | {"name": self.name}, *within)


class Manifest(Value):
    """What the file says."""

    set: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = Field(
        "default", description="pruning removes adapters of the same set only"
    )
    adapters: tuple[Entry, ...]

    @field_validator("adapters")
    @classmethod
    def _are_distinct(cls, adapters: tuple[Entry, ...]) -> tuple[Entry, ...]:
        names = [entry.name for entry in adapters]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(twice))}: named twice")
        return adapters


class Change(Value):
    """A step towards what the file says.

    Attributes:
        entry: what the file says of the adapter; None when it is to be deleted.
        fields: of the card, that differ.
        owner: another set that the adapter belongs to.
    """

    kind: Literal["register", "adopt", "version", "edit", "delete"]
    name: str
    entry: Entry | None = None
    fields: tuple[str, ...] = ()
    owner: str | None = None

    def __str__(self) -> str:
        if self.entry is None:
            return f"- {self.name}"
        match self.kind:
            case "register":
                return f"+ {self.name}: from {self.entry.source}"
            case "adopt" if self.owner:
                return f"~ {self.name}: is taken from the set {self.owner}"
            case "adopt":
                return f"~ {self.name}: is not yet of this set"
            case "version":
                return f"~ {self.name}: a version from {self.entry.source}"
            case _:
                return f"~ {self.name}: {', '.join(self.fields)}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML drops the first one, and `--prune` what it had."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_manifest(file: Path) -> Manifest:
    """Read and check the whole file; folders in it are taken from the file's own folder.

    Raises:
        InvalidRequest: it is missing, is not YAML, or has a wrong key or value, which is named.
    """
    try:
        tree = yaml.load(file.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise InvalidRequest(f"{file} cannot be read as YAML: {e}") from e
    if not isinstance(tree, dict):
        raise InvalidRequest(f"{file}: a mapping with the key 'adapters' is needed at the top")
    manifest = parse(Manifest, tree)
    for i, entry in enumerate(manifest.adapters):
        entry.card(f"adapters[{i}]")
    placed = tuple(_placed(entry, file.parent) for entry in manifest.adapters)
    return manifest.model_copy(update={"adapters": placed})


def changes(
    manifest: Manifest, stored: Mapping[str, dict[str, Any]], *, prune: bool
) -> Iterator[Change]:
    """What to do, in the file's order, removals last.

    Args:
        stored: the registered adapters by name, as the API shows them.
        prune: remove what was applied from an earlier form of the file and is there no more.
    """
    for entry in manifest.adapters:
        adapter = stored.get(entry.name)
        if adapter is None:
            yield Change(kind="register", name=entry.name, entry=entry)
            continue
        if adapter["metadata"].get(MARK) != mark_of(manifest, entry):
            owner = _set_of(adapter)
            kind = "version" if owner == manifest.set else "adopt"
            yield Change(kind=kind, name=entry.name, entry=entry, owner=owner)
        elif fields := tuple(edits(entry, adapter)):
            yield Change(kind="edit", name=entry.name, entry=entry, fields=fields)
    if prune:
        declared = {entry.name for entry in manifest.adapters}
        for name, adapter in stored.items():
            if _set_of(adapter) == manifest.set and name not in declared:
                yield Change(kind="delete", name=name)


def mark_of(manifest: Manifest, entry: Entry) -> dict[str, str]:
    return {"set": manifest.set, "origin": entry.origin}


def edits(entry: Entry, adapter: dict[str, Any]) -> dict[str, Any]:
    """The card's fields that are stored otherwise than the file has them."""
    wanted = entry.card().model_dump(mode="json", include=set(entry.given()))
    if entry.metadata is not None and not entry.metadata.items() <= adapter["metadata"].items():
        wanted["metadata"] = adapter["metadata"] | entry.metadata
    return {field: value for field, value in wanted.items() if adapter[field] != value}


def _set_of(adapter: dict[str, Any]) -> str | None:
    """The set that it was applied from."""
    mark = adapter["metadata"].get(MARK)
    return mark.get("set") if isinstance(mark, dict) else None


def _placed(entry: Entry, folder: Path) -> Entry:
    if not entry.is_local:
        return entry
    path = (folder / Path(entry.source).expanduser()).resolve()
    if not path.exists():
        raise InvalidRequest(f"{entry.name}: {path} does not exist", param="source")
    return entry.model_copy(update={"source": str(path)})


def _hash_of(path: Path) -> str:
    from adapter_store.files.inbound.fetching import WANTED

    found = hashlib.sha256()
    files = [path] if path.is_file() else [path / name for name in sorted(WANTED)]
    for file in files:
        if file.is_file():
            found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as data:
                while block := data.read(2**20):
                    found.update(block)
    return found.hexdigest()
