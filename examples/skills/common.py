"""What every skill shares: the protocol, a small template language, and the train/test split.

A skill is a module with a name, a description and `generate(rng)`, which makes one request and
its only right answer. Wordings are templates: `[a|b]` stands for either text (nestable), `{slot}`
for a value. The last wordings of long lists are held out: no adapter is ever trained on them.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

CHOICE = re.compile(r"\[([^\[\]]*)\]")
ATTEMPTS_PER_EXAMPLE = 200

OPENERS = (
    *("hi, ", "hey, ", "hello! ", "ok, ", "so, ", "ok so ", "quick one: ", "quick question: "),
    *("one more: ", "next: ", "help: ", "good morning, ", "hey there - ", "sorry to ask again: "),
    *("for today: ", "small request: ", "hmm, ", "right, ", "well, ", "please help: "),
)
CLOSERS = (" please", ", please", " thanks", ", thanks!", " thx", " pls", " - thank you", " :)")

CITIES = (
    *(
        "Lisbon",
        "Berlin",
        "Oslo",
        "Paris",
        "Madrid",
        "Rome",
        "Vienna",
        "Dublin",
        "Prague",
        "Athens",
    ),
    *("Boston", "Tokyo", "Lima", "Cairo", "Seattle", "Toronto", "Sydney", "Mumbai", "Nairobi"),
    *("Helsinki", "Warsaw", "Zurich", "Chicago", "Seoul", "Milan", "Porto", "Geneva", "Austin"),
)


@dataclass(frozen=True)
class Example:
    """One request, its exact answer, and whether its wording is kept for the test set."""

    prompt: str
    answer: str
    held_out: bool = False


class Skill(Protocol):
    """A module of `examples.skills`."""

    NAME: str
    DESCRIPTION: str

    def generate(self, rng: random.Random) -> Example: ...


def expand(rng: random.Random, template: str, slots: Mapping[str, object] | None = None) -> str:
    """Replaces every `[a|b]` by one of its options, innermost first, then fills `{slots}`."""
    while match := CHOICE.search(template):
        option = rng.choice(match[1].split("|"))
        template = template[: match.start()] + option + template[match.end() :]
    return template.format_map(slots or {})


def pick_wording(rng: random.Random, wordings: Sequence[str]) -> tuple[str, bool]:
    """One template of the list, and whether it is held out.

    Held out is the last sixth of the list, at least one, if it has four or more.
    """
    index = rng.randrange(len(wordings))
    kept = max(len(wordings) // 6, len(wordings) >= 4)
    return wordings[index], index >= len(wordings) - kept


def from_phrasebook(
    rng: random.Random,
    phrasebook: Mapping[str, Sequence[str]],
    slots: Mapping[str, Sequence[object]],
) -> Example:
    """An example from `{answer template: wordings}`, all slots drawn at random."""
    answer = rng.choice(list(phrasebook))
    wording, held_out = pick_wording(rng, phrasebook[answer])
    values = {name: rng.choice(options) for name, options in slots.items()}
    return Example(expand(rng, wording, values), answer.format_map(values), held_out)


def combine(*parts: Sequence[str]) -> tuple[str, ...]:
    """Every concatenation of one text from each part."""
    return tuple("".join(texts) for texts in product(*parts))


def dress(rng: random.Random, prompt: str) -> str:
    """The same request as people type it: greetings, thanks, sloppy case and punctuation."""
    if rng.random() < 0.4:
        prompt = prompt.rstrip("?.!")
    if rng.random() < 0.15 and prompt[-1] not in "?.!":
        prompt += rng.choice(CLOSERS)
    if rng.random() < 0.2:
        return rng.choice(OPENERS) + prompt
    plain_word = prompt.split()[0].isalpha()
    return prompt[0].upper() + prompt[1:] if plain_word and rng.random() < 0.4 else prompt


def split(
    skill: Skill, train_size: int, test_size: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Train and test examples that share no request, whatever its case or punctuation.

    A quarter of the test set has held-out wordings, the rest has wordings seen in training. The
    test set depends on the seed and not on `train_size`.
    """
    rng = random.Random(f"{skill.NAME} test {seed}")
    test = draw_distinct(skill, rng, test_size // 4, held_out=True)
    test |= draw_distinct(skill, rng, test_size - test_size // 4, held_out=False)
    tested = [dressed(rng, example) for example in test.values()]
    rng = random.Random(f"{skill.NAME} train {seed}")
    train: list[Example] = []
    while len(train) < train_size:
        example = skill.generate(rng)
        if not example.held_out and key(example) not in test:
            train.append(dressed(rng, example))
    return train, tested


def draw_distinct(
    skill: Skill, rng: random.Random, count: int, *, held_out: bool
) -> dict[str, Example]:
    """`count` different requests of one kind, by their key."""
    found: dict[str, Example] = {}
    for _ in range(count * ATTEMPTS_PER_EXAMPLE):
        example = skill.generate(rng)
        if example.held_out == held_out:
            found[key(example)] = example
        if len(found) == count:
            return found
    raise ValueError(f"skill {skill.NAME} has fewer than {count} requests of this kind")


def key(example: Example) -> str:
    """What two prompts have in common when they are the same request."""
    return " ".join(re.findall(r"\S+", example.prompt.casefold().rstrip("?.!")))


def dressed(rng: random.Random, example: Example) -> Example:
    """The example with its prompt as a person would type it."""
    return replace(example, prompt=dress(rng, example.prompt))
