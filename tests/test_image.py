"""The Dockerfile as far as it can be known without an engine that builds it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from deployments.command.haproxy import our_haproxy
from deployments.proxy.command import HAPROXY_AT
from k8s.generate import CHART
from k8s.tools import PACKAGE
from tests.conftest import COMMAND

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "k8s" / "images" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXT = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text())
LINES = TEXT.replace("\\\n", " ").splitlines()


def words(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.startswith(instruction + " ")]


def copied() -> list[str]:
    """What is copied from the project's folder."""
    plain = [args for args in words("COPY") if not args[0].startswith("--from")]
    return [source for args in plain for source in args[:-1] if not source.startswith("--")]


def test_the_linter_has_nothing_to_say():
    linter = COMMAND.with_name("hadolint")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_exists_and_is_sent_to_the_builder():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [ROOT / line[1:] for line in ignore if line.startswith("!")]
    allowed = {file for path in sent for file in path.parent.glob(path.name)}
    assert "*" in ignore, "nothing is sent but what is named"
    for source in copied():
        found = list(ROOT.glob(source))
        assert found, source
        for path in found:
            inside = {path, *path.parents, *path.iterdir()} if path.is_dir() else {path}
            assert inside & allowed, f"{path} is not sent"


def test_every_package_is_copied():
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in found} <= set(copied())


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_versions_agree(lock):
    """Of the image, the chart, the lock and the project."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    pins = dict(re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE))
    (python,) = [args[0].removeprefix("PYTHON=") for args in words("ARG") if "PYTHON" in args[0]]
    version = PROJECT["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["rayVersion"] == pins["ray"]
    assert chart["appVersion"] == chart["version"] == version
    assert tuple(map(int, python.split("-")[0].split(".")))[:2] >= (3, 11)
    assert f"roundhouse:{version}-{lock}" in DOCKERFILE.read_text()
    assert PACKAGE.replace(".", "-") not in pins, "test tools stay out of the image"


def test_it_runs_as_the_user_that_the_chart_asks_for():
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    users = set(re.findall(r'include "roundhouse.podSecurity" (\d+)', helpers))
    assert users == {"1000"}
    assert words("USER") == [["1000:1000"]]
    # No later stage goes back to root.
    assert not any(line.startswith("USER root") for line in LINES)


def test_it_has_the_programs_that_the_operator_and_ray_run():
    """`bash -c "ray start ..."`; `wget ... | grep success` asks a worker whether it is ready."""
    (apt,) = [line for line in LINES if "apt-get install" in line]
    links = re.search(r"ln -s (.*) /usr/local/bin/", apt)
    assert "wget" in apt.split()
    linked = {f"/usr/local/bin/{Path(p).name}" for p in links[1].split()}
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    (haproxy,) = re.findall(r"RAY_SERVE_HAPROXY_BINARY_PATH, value: (\S+)}", helpers)
    assert linked == {"/usr/local/bin/ray", "/usr/local/bin/roundhouse", haproxy}
    # bash and grep are Debian's own.
    assert "slim-bookworm" in DOCKERFILE.read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The project as the image installs it: built from what is copied, away from the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in copied():
        for path in ROOT.glob(name):
            if path.is_dir() and path.name != "examples":
                shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pyc*"))
            elif path.is_file() and path.parent == ROOT:
                shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*command, "--target", target, source], check=True, timeout=100)
    return target


def python(installed: Path, code: str, tmp_path: Path) -> str:
    """Run it where the checkout cannot be seen: only the installed copy can answer."""
    first = f"import sys; sys.path[:0] = [{str(installed)!r}]; "
    command = [sys.executable, "-I", "-c", first + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_charts_import_path_is_in_what_is_installed(installed, tmp_path):
    said = python(
        installed, "from deployments.app import build; print(build.__code__.co_filename)", tmp_path
    )
    assert Path(said).is_relative_to(installed)


def test_what_is_read_at_run_time_is_installed_too(installed):
    """Lua scripts, the page, the kernel's source."""
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert (installed / file.relative_to(ROOT)).is_file(), file


def test_the_entry_points_run(installed, tmp_path):
    scripts = {script.name for script in (installed / "bin").iterdir()}
    assert scripts == {"roundhouse", "roundhouse-haproxy"}
    # In the environment that Ray Serve starts it with.
    haproxy = (
        f"import os; os.environ[{HAPROXY_AT!r}] = {str(our_haproxy())!r}; sys.argv[1:] = ['-v']; "
    )
    haproxy += "from deployments.proxy.command import main; main()"
    assert python(installed, haproxy, tmp_path).startswith("HAProxy version")
    code = "sys.argv = ['roundhouse', '--help']; from deployments.command.cli import main; main()"
    assert "adapters" in python(installed, code, tmp_path)
