"""Whether `auto` chooses the same for a prompt as it is and as programs send it.

`make bench-harness` writes `results/harness.json`. Each prompt is put into each of the shapes of
`harness_styles.py`; the choice for the bare prompt is what it should be. Measured on the demo's
cards with their held-out prompts and what people asked a system that could not help (CLINC150), of
which nothing was chosen by; developed on intents of CLINC150 and tasks of BBH (`--develop`).
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import routing_data
from benchmarks.conversations import Remembering, demo_adapter
from benchmarks.harness_styles import STYLES, Messages
from cluster.adapters import Adapter, Card, Version
from cluster.decisions import Prompt
from cluster.settings import RouterSettings
from examples.evaluate import held_out
from examples.skills import SKILLS
from router.adapters.constraints import Constraints
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from router.adapters.prompts import clip, prompt_of, whole

HERE = Path(__file__).parent
RESULT = HERE / "results" / "harness.json"
DEVELOPED_INTENTS, DEVELOPED_TASKS, OF_EACH_CARD = 13, 6, 15
console = Console(stderr=True)

World = tuple[dict[str, Adapter], list[str], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=8, help="prompts of each adapter")
    parser.add_argument("--strange", type=int, default=100, help="prompts that are for none")
    parser.add_argument("--develop", action="store_true", help="on other cards; writes nothing")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    world = developed(args) if args.develop else demo(args)
    adapters, fitting, strange = world
    router = PromptRouter(Remembering(SentenceEncoder.of(RouterSettings())), RouterSettings())
    router.update(adapters)
    prompts = [*fitting, *strange]
    bare = chosen(router, [prompt_of(text) for text in prompts])
    console.print(f"{len(fitting)} prompts for adapters, {len(strange)} for none")
    styles: dict[str, Any] = {}
    for name, style in STYLES.items():
        rng = np.random.default_rng(0)
        sent = [style(text, rng) for text in prompts]
        found = {
            "asked": chosen(router, [prompt_of(messages) for messages in sent]),
            "whole turn": chosen(router, [whole_turn(messages) for messages in sent]),
        }
        styles[name] = {how: same(bare, choices, len(fitting)) for how, choices in found.items()}
        if args.develop:
            told(name, prompts, sent, bare, found["asked"])
        console.print(f"{name}: {styles[name]}")
    result = {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in ("sentence-transformers", "torch", "scikit-learn")},
        "command": f"python -m benchmarks.harness --each {args.each} --strange {args.strange}",
        "prompts": {"for adapters": len(fitting), "for none": len(strange)},
        "styles": styles,
        "all": {
            how: {
                of: round(float(np.mean([style[how][of] for style in styles.values()])), 2)
                for of in ("choice", "scope", "for none")
            }
            for how in ("asked", "whole turn")
        },
    }
    console.print_json(json.dumps(result["all"]))
    if not args.develop:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def demo(args: argparse.Namespace) -> World:
    """The demo's cards, and prompts that no card has."""
    adapters = {skill: demo_adapter(skill) for skill in SKILLS}
    fitting = [e.prompt for skill in SKILLS for e in held_out(skill)[: args.each]]
    return adapters, fitting, strangers(args, "test")


def developed(args: argparse.Namespace) -> World:
    """Cards of intents and tasks, with prompts of theirs."""
    rng = np.random.default_rng(0)
    adapters: dict[str, Adapter] = {}
    fitting: list[str] = []
    sources = (
        (routing_data.clinc(args.data)[1], DEVELOPED_INTENTS, "val"),
        (routing_data.bbh(args.data), DEVELOPED_TASKS, ""),
    )
    for labelled, count, split in sources:
        for label in rng.choice(len(labelled.names), count, replace=False):
            of_label = labelled.labels == label
            learnt = np.flatnonzero(of_label & (labelled.split == ("train" if split else "")))
            asked = np.flatnonzero(of_label & (labelled.split == split))
            learnt, asked = learnt[:OF_EACH_CARD], asked[-args.each :]
            name = labelled.names[label].replace(" ", "-").replace("_", "-")
            examples = tuple(labelled.texts[i] for i in learnt)
            card = Card(name=name, base_model="m", examples=examples)
            first = Version(
                number=1, digest="", size_bytes=0, rank=0, target_modules=(), created_at=0
            )
            adapters[name] = Adapter(
                card=card, versions={1: first}, aliases={"stable": 1}, revision=0
            )
            fitting += [labelled.texts[i] for i in asked]
    return adapters, fitting, strangers(args, "val")


def strangers(args: argparse.Namespace, split: str) -> list[str]:
    """What people asked a system that could not help with it."""
    labelled = routing_data.clinc(args.data)[0]
    rows = np.flatnonzero((labelled.labels == -1) & (labelled.split == split))
    return [labelled.texts[i] for i in rows[: args.strange]]


def chosen(router: PromptRouter, prompts: list[Prompt]) -> list[str | None]:
    return [decision.adapter for decision in router.choose(prompts, Constraints())]


def whole_turn(messages: Messages) -> Prompt:
    """All of the last turn of the user, as it is."""
    return Prompt(text=clip(whole(messages)[0]))


def same(
    bare: Sequence[str | None], choices: Sequence[str | None], fitting: int
) -> dict[str, float]:
    """Shares in %: of the same choices, of prompts as much in scope; and of those for none alone,
    of the same choices."""

    def share(of: Callable[[str | None], Any], start: int = 0) -> float:
        equal = [of(a) == of(b) for a, b in zip(bare[start:], choices[start:], strict=True)]
        return round(100 * float(np.mean(equal)), 2)

    return {
        "choice": share(lambda name: name),
        "scope": share(lambda name: name is None),
        "for none": share(lambda name: name, fitting),
    }


def told(
    style: str,
    prompts: Sequence[str],
    sent: Sequence[Messages],
    bare: Sequence[str | None],
    choices: Sequence[str | None],
) -> None:
    """The first few that went elsewhere."""
    rows = [i for i, (a, b) in enumerate(zip(bare, choices, strict=True)) if a != b]
    for i in rows[:4]:
        read = prompt_of(sent[i])
        console.print(f"  {style}: {bare[i]} -> {choices[i]}", style="dim")
        console.print(f"    {prompts[i][-80:]!r} read as {read.text[:160]!r}", markup=False)


if __name__ == "__main__":
    main()
