"""Compiles and loads the CPU kernel of `lora_kernel.cpp`, once per machine and version.

``python -m deployments.engines.lora_kernel`` builds it ahead of time; else the first engine does.
"""

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
_BUILD_LIMIT_S = 300


class KernelUnavailable(Exception):
    """The kernel cannot be built here; the message says why and what helps."""


def ensure_built() -> Path:
    """The compiled kernel, built now where it is missing (about 20 s); safe under concurrency.

    Raises:
        KernelUnavailable: no compiler, or it failed.
    """
    library = library_path()
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    # The kernel of the operating system frees this lock when its holder dies.
    with (library.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.is_file():
            print("Compiling the CPU LoRA kernel (once, about 20 s) ...", file=sys.stderr)
            _build(library)
    return library


def library_path() -> Path:
    """Where the library is or would be: one for each source, compiler, torch and processor."""
    import torch

    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    parts = (SOURCE.read_text(), torch.__version__, version.stdout, _processor(), *_FLAGS)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("ROUNDHOUSE_CACHE", "~/.cache/roundhouse")).expanduser()
    return cache / "kernels" / key / "lora_kernel.so"


def _compiler() -> str:
    name = os.environ.get("CXX", "c++")
    found = shutil.which(name)
    if found is None:
        raise KernelUnavailable(
            f"no C++ compiler ({name}): install g++ (or set CXX) for faster adapters"
        )
    return found


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on: a library of one machine may be illegal on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _build(library: Path) -> None:
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        target = Path(folder) / library.name
        command = [_compiler(), *_FLAGS, str(SOURCE), "-o", str(target)]
        command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
        command += [f"-L{path}" for path in cpp_extension.library_paths()]
        command += ["-lc10", "-ltorch_cpu"]
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_BUILD_LIMIT_S
            )
        except subprocess.CalledProcessError as e:
            raise KernelUnavailable(f"the C++ compiler failed: {_last_lines(e.stderr)}") from e
        except subprocess.TimeoutExpired as e:
            raise KernelUnavailable(f"the C++ compiler took over {_BUILD_LIMIT_S} s") from e
        target.rename(library)


def _last_lines(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line]
    return " | ".join((errors or text.splitlines())[:3])


if __name__ == "__main__":
    try:
        print(ensure_built())
    except KernelUnavailable as e:
        print(f"{e}. Adapters then run on the slower kernel in Python.", file=sys.stderr)
