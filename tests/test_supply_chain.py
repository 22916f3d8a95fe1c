"""What is installed is what the lock files say, to the byte, wherever it comes from."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from k8s.values import Values
from requirements.lock import requirements

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
MAKEFILE = (ROOT / "Makefile").read_text()
DOCKERFILE = (ROOT / "k8s" / "images" / "Dockerfile").read_text()
every_lock = pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
DIGEST = r"@sha256:[0-9a-f]{64}$"


@every_lock
def test_every_package_has_a_version_and_hashes(lock):
    text = lock.read_text()
    locked = requirements(text)
    assert "".join(locked) == text, "nothing else is in it"
    for requirement in locked:
        pin, *hashes = [part.strip() for part in requirement.split("\\\n")]
        assert re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.+]+", pin), pin
        assert hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), pin


def pip_commands() -> list[str]:
    """Of all places that install something."""
    made = subprocess.run(
        ["make", "-n", "-B", "lint", "sbom", "LOCK=cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (made.stdout + DOCKERFILE.replace("\\\n", " ")).splitlines()
    commands = [command for line in lines for command in re.split(r"&&|\|", line)]
    return [c for c in commands if re.search(r"\bpip\b.* (install|wheel) ", c)]


def test_nothing_is_installed_without_its_hash_but_the_project_itself():
    found = pip_commands()
    assert len(found) >= 9
    for command in found:
        if not re.search(r" (-e )?(\.|/wheel/\*\.whl)( |$)", command):
            assert "--require-hashes --no-deps --only-binary :all:" in command
        # What is built is built by what is locked.
        assert "--no-deps" in command
        if "/wheel/*.whl" not in command:
            assert "--only-binary" in command or "--no-build-isolation" in command


def test_torchs_own_index_is_asked_for_torch_alone():
    with_index = [c for c in pip_commands() if re.search(r" -i |index-url|TORCH_INDEX", c)]
    assert len(with_index) == 2
    assert all(re.search(r"-r \S*torch\.txt", c) for c in with_index)
    assert "extra-index-url" not in MAKEFILE + DOCKERFILE
    assert "EXTRA_INDEX" not in MAKEFILE + DOCKERFILE


@pytest.mark.hostile
def test_a_package_of_the_same_name_and_version_from_elsewhere_is_refused(tmp_path):
    """What another index, a mirror or somebody between would have to slip in."""
    (wanted,) = [r for r in requirements(LOCKS[0].read_text()) if r.startswith("annotated-types==")]
    version = re.match(r"annotated-types==(\S+)", wanted)[1]
    with zipfile.ZipFile(tmp_path / f"annotated_types-{version}-py3-none-any.whl", "w") as wheel:
        about = f"annotated_types-{version}.dist-info"
        wheel.writestr("annotated_types/__init__.py", "raise SystemExit('taken over')")
        wheel.writestr(f"{about}/METADATA", f"Name: annotated-types\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (tmp_path / "lock").write_text(wanted)
    (options,) = re.findall(r"^LOCKED := (.*)$", MAKEFILE, re.MULTILINE)
    command = [sys.executable, "-m", "pip", *options.split(), "-r", str(tmp_path / "lock")]
    command += ["-f", str(tmp_path), "--target", str(tmp_path / "there")]
    alone = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "there").exists()


def test_images_stand_on_digests():
    """A tag may be given to another image."""
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.search(DIGEST, base)
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) <= stages | {
        "python:${PYTHON}"
    }
    assert "# syntax" not in DOCKERFILE, "that is an image, too"
    assert re.search(DIGEST, Values().redis.image)


def test_the_bill_of_materials_has_every_package_with_its_hashes(tmp_path):
    pytest.importorskip("cyclonedx_py", reason="`make sbom` brings it")
    out = tmp_path / "sbom.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "-o", str(out)]
    lock = ROOT / "requirements" / "cpu.lock"
    subprocess.run([*command, str(lock)], check=True, capture_output=True)
    bill = json.loads(out.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert len(bill["components"]) == len(requirements(lock.read_text()))
    for part in bill["components"]:
        assert part["purl"].startswith("pkg:pypi/")
        assert part["externalReferences"][0]["hashes"], part["name"]
