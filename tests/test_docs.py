"""The docs say what the code does."""

import json
import re
from pathlib import Path

import pytest
import yaml

from docs import generate

ROOT = Path(__file__).parent.parent
MARKDOWN = sorted(p for p in ROOT.rglob("*.md") if ".venv" not in p.parts)


@pytest.mark.parametrize("name", generate.pages())
def test_generated_pages_are_current(name):
    assert (ROOT / "docs" / name).read_text() == generate.pages()[name], "run `make docs`"


def test_the_readme_quotes_the_benchmark():
    ratios = json.loads((ROOT / "benchmarks" / "results" / "engine-cpu.json").read_text())["ratios"]
    decode, prefill = (ratios[kind]["rank 8"] for kind in ("decode", "prefill"))
    ours, stock = "ours", "stock vLLM"
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"decode runs at {decode[ours]['4']:.2f} of the speed" in said
    assert f"(stock {decode[stock]['4']:.2f}) and prefill at {prefill[ours]['4']:.2f}" in said
    assert f"(stock {prefill[stock]['4']:.2f})" in said


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_only_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named <= targets


def test_every_package_imports_one_way_only():
    """cluster <- adapter_store <- router <- deployments."""
    order = ["cluster", "adapter_store", "router", "deployments"]
    for i, package in enumerate(order):
        for file in (ROOT / package).rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
            assert not imported & set(order[i + 1 :]), f"{file} imports from a later package"


def test_the_plan_imports_nothing_heavy():
    heavy = {"ray", "redis", "torch", "vllm", "fastapi", "transformers"}
    for file in (ROOT / "cluster").rglob("*.py"):
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
        assert not imported & heavy, file


def test_the_page_on_kubernetes_names_only_what_there_is():
    """Paths, values of the chart, and commands."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for path in re.findall(r"\bk8s/[\w./-]+\w", page):
        assert (ROOT / path).exists(), path
    values = yaml.safe_load((ROOT / "k8s/chart/values.yaml").read_text())
    sections = "|".join(name for name, value in values.items() if isinstance(value, dict))
    named = re.findall(rf"`(?:{sections})(?:\.\w+)+`", page)
    assert len(named) > 15
    for name in (n.strip("`") for n in named):
        if not name.startswith("settings."):
            found = values
            for part in name.split("."):
                assert part in found, name
                found = found[part]
    commands = generate.cli_page()
    for command in re.findall(r"roundhouse (?:adapters|store|keys) \w+", page):
        assert f"## `{command}`" in commands, command
