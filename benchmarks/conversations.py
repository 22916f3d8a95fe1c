"""Whether chats stay with their adapter, and leave it when they should.

`make bench-conversations` writes `results/conversations.json`. Conversations of 3 to 8 turns with
the demo's skills, made of held-out prompts and of phrases of `conversation_phrases.json`: the
margin is chosen on some skills, and measured on others with phrases of their own. The catalogue is
the demo's, all thirteen. Every method answers by itself: what it chose for one turn is what the
next one may stay with.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import routing_data
from cluster.adapters import Adapter, Card, Version
from cluster.decisions import Held, Prompt
from cluster.settings import RouterSettings
from examples.evaluate import ADAPTERS, held_out
from examples.skills import SKILLS
from router.adapters.constraints import Constraints
from router.adapters.encoder import Embeddings, SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from router.adapters.prompts import prompt_of

HERE = Path(__file__).parent
RESULT = HERE / "results" / "conversations.json"
PHRASES = HERE / "conversation_phrases.json"
MARGINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
MOST_TURNS, FEWEST_TURNS = 8, 3
# Of turns after the first: a phrase that goes on, another prompt of the task, another task, an
# everyday question.
KINDS = {"phrase": 0.45, "prompt": 0.2, "task": 0.25, "everyday": 0.1}
console = Console(stderr=True)


@dataclass(frozen=True)
class Turn:
    """A turn of the user.

    Attributes:
        task: the skill that should answer; None: the base model.
        kind: ``first``, or one of KINDS.
    """

    text: str
    task: str | None
    kind: str


Conversation = list[Turn]
# Of the prompts of one turn of many conversations.
Choose = Callable[[list[Prompt]], list[str | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="conversations of each part")
    parser.add_argument("--tuning-only", action="store_true", help="leave the test alone")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    phrases = json.loads(PHRASES.read_text())
    encoder = Remembering(SentenceEncoder.of(RouterSettings()))
    made = {part: list(conversations(phrases[part], args.count)) for part in phrases}
    methods = dict(_methods(encoder))
    tuned = {name: _measured(made["tuning"], choose) for name, choose in methods.items()}
    console.print_json(json.dumps(tuned))
    if args.tuning_only:
        return
    chosen = f"Roundhouse, margin {RouterSettings().stay_margin}"
    shown = [name for name in methods if name == chosen or not name.startswith("Roundhouse")]
    result = {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in ("sentence-transformers", "torch", "scikit-learn")},
        "command": f"python -m benchmarks.conversations --count {args.count}",
        "conversations": args.count,
        "turns": {part: sum(map(len, made[part])) for part in made},
        "tuning": tuned,
        "test": {name: _measured(made["test"], methods[name]) for name in shown},
    }
    if args.data.is_dir():
        met = strangers(args.data)
        result["strangers"] = {n: _to_base(met, methods[n]) for n in shown} | {"prompts": len(met)}
    else:
        console.print(f"{args.data} is not there: left out are the questions of CLINC150")
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result["test"]))


# -- what is said -------------------------------------------------------------------------------


def conversations(phrases: dict[str, Any], count: int, seed: int = 0) -> Iterator[Conversation]:
    """Made of the phrases of a part and of the held-out prompts of its skills."""
    rng = np.random.default_rng(seed)
    prompts = {skill: [e.prompt for e in held_out(skill)] for skill in phrases["skills"]}
    for _ in range(count):
        is_everyday = rng.random() < KINDS["everyday"]
        turns = [_everyday(rng, phrases, "first") if is_everyday else _task(rng, prompts, "first")]
        for _ in range(int(rng.integers(FEWEST_TURNS, MOST_TURNS + 1)) - 1):
            turns.append(_next(rng, phrases, prompts, turns))
        yield turns


def _next(
    rng: np.random.Generator,
    phrases: dict[str, Any],
    prompts: dict[str, list[str]],
    turns: Conversation,
) -> Turn:
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    last = turns[-1].task
    if kind == "everyday" or (last is None and kind == "prompt"):
        return _led(rng, phrases, _everyday(rng, phrases, "everyday"))
    if kind == "task":
        others = {skill: texts for skill, texts in prompts.items() if skill != last}
        return _led(rng, phrases, _task(rng, others, "task"))
    if last is not None:
        said = {last: prompts[last] if kind == "prompt" else phrases["skills"][last]}
        is_courtesy = kind == "phrase" and rng.random() < 0.05
        said = {last: phrases["courtesy"]} if is_courtesy else said
        return _task(rng, said, kind)
    asked = next(t.text for t in reversed(turns) if t.kind in ("everyday", "first"))
    (about,) = [q for q in phrases["everyday"] if asked.lower().endswith(q[0].lower())]
    return Turn(str(rng.choice(about[1:])), None, "phrase")


def _task(rng: np.random.Generator, texts: dict[str, list[str]], kind: str) -> Turn:
    skill = str(rng.choice(list(texts)))
    return Turn(str(rng.choice(texts[skill])), skill, kind)


def _everyday(rng: np.random.Generator, phrases: dict[str, Any], kind: str) -> Turn:
    about = phrases["everyday"][int(rng.integers(len(phrases["everyday"])))]
    return Turn(about[0], None, kind)


def _led(rng: np.random.Generator, phrases: dict[str, Any], turn: Turn) -> Turn:
    """The turn, perhaps with words that lead over to it."""
    lead = str(rng.choice(phrases["leads"]))
    text = turn.text[0].lower() + turn.text[1:] if lead else turn.text
    return replace(turn, text=lead + text)


def strangers(data: Path) -> list[Conversation]:
    """What people asked a system that could not help with it (CLINC150), in chats with a skill."""
    queries = routing_data.clinc(data)[0]
    rows = np.flatnonzero((queries.labels == -1) & (queries.split == "test"))
    rng, prompts = np.random.default_rng(0), {s: [e.prompt for e in held_out(s)] for s in SKILLS}
    return [
        [_task(rng, prompts, "first"), Turn(queries.texts[row], None, "everyday")] for row in rows
    ]


# -- who answers --------------------------------------------------------------------------------


class Remembering:
    """An encoder that reads each text once. Implements `Encoder`."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.version = encoder.version

    def encode(self, texts: list[str]) -> Embeddings:
        new = list(dict.fromkeys(t for t in texts if t not in self._known))
        if new:
            read = self._encoder.encode(new)
            self._known |= dict(zip(new, zip(read.meaning, read.form, strict=True), strict=True))
        found = [self._known[text] for text in texts]
        return Embeddings(np.stack([m for m, _ in found]), np.stack([f for _, f in found]))


def _methods(encoder: Remembering) -> Iterator[tuple[str, Choose]]:
    """By name; without a margin nothing stays."""
    for margin in MARGINS:
        router = PromptRouter(encoder, RouterSettings(stay_margin=margin))
        router.update({skill: demo_adapter(skill) for skill in SKILLS})
        if margin:
            yield f"Roundhouse, margin {margin}", partial(_choose, router)
        else:
            yield "always choosing anew", partial(_anew, router)
            yield "by the last turn alone", partial(_by_last_turn, router)
            yield "never leaving", partial(_never_leaving, router)


def _choose(router: PromptRouter, prompts: list[Prompt]) -> list[str | None]:
    return [d.adapter for d in router.choose(prompts, Constraints())]


def _anew(router: PromptRouter, prompts: list[Prompt]) -> list[str | None]:
    """As where nothing is known of earlier turns but their text."""
    return _choose(router, [p.model_copy(update={"held": None}) for p in prompts])


def _by_last_turn(router: PromptRouter, prompts: list[Prompt]) -> list[str | None]:
    return _choose(router, [Prompt(text=p.text) for p in prompts])


def _never_leaving(router: PromptRouter, prompts: list[Prompt]) -> list[str | None]:
    chosen = _anew(router, prompts)
    return [c if p.held is None else p.held.adapter for p, c in zip(prompts, chosen, strict=True)]


def demo_adapter(skill: str) -> Adapter:
    told = json.loads((ADAPTERS / skill / "card.json").read_text())
    card = Card(**{name: told[name] for name in ("name", "description", "base_model", "examples")})
    first = Version(number=1, digest="", size_bytes=0, rank=0, target_modules=(), created_at=0)
    return Adapter(card=card, versions={1: first}, aliases={"stable": 1}, revision=0)


# -- how well -----------------------------------------------------------------------------------


def _measured(made: Sequence[Conversation], choose: Choose) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    needless = 0
    held: list[Held | None] = [None] * len(made)
    for place in range(MOST_TURNS):
        rows = [i for i, turns in enumerate(made) if len(turns) > place]
        prompts = [_prompt(made[i][: place + 1]).model_copy(update={"held": held[i]}) for i in rows]
        for i, answered in zip(rows, choose(prompts), strict=True):
            turn, before = made[i][place], made[i][place - 1].task
            went = "first" if not place else "stays" if turn.task == before else "goes"
            for group in (went, f"{went}: {_group(turn)}"):
                right.setdefault(group, []).append(answered == turn.task)
            last = held[i]
            needless += went == "stays" and last is not None and answered != last.adapter
            held[i] = Held(adapter=answered, at=0)
    shares = {name: round(100 * float(np.mean(r)), 2) for name, r in sorted(right.items())}
    return shares | {"needless switches": round(100 * needless / len(right["stays"]), 2)}


def _to_base(met: Sequence[Conversation], choose: Choose) -> float:
    """Share of the second turns that the base model answers."""
    prompts = [
        _prompt(turns).model_copy(update={"held": Held(adapter=turns[0].task, at=0)})
        for turns in met
    ]
    return round(100 * float(np.mean([answered is None for answered in choose(prompts)])), 2)


def _group(turn: Turn) -> str:
    who = "an adapter's" if turn.task else "the base model's"
    return f"{who} {'phrases' if turn.kind == 'phrase' else 'prompts'}"


def _prompt(turns: Conversation) -> Prompt:
    return prompt_of([{"role": "user", "content": turn.text} for turn in turns])


if __name__ == "__main__":
    main()
