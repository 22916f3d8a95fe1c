"""Prompts whose right adapter or expert model is known; see `--data`."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_WEAK, _STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"


@dataclass(frozen=True)
class Labelled:
    """n texts.

    Attributes:
        labels: (n,) class; -1 is out of scope.
        split: (n,) ``train``, ``val`` or ``test``, or ``name``: a text that is but the name of its
            class, which is all that a card without examples may say.
    """

    texts: list[str]
    labels: np.ndarray
    split: np.ndarray
    names: list[str]


def bbh(data: Path) -> Labelled:
    """27 tasks of BIG-Bench-Hard; it has no split of its own."""
    files = sorted((data / "bbh").glob("*.json"))
    found = [[e["input"] for e in json.loads(f.read_text())["examples"]] for f in files]
    labels = np.repeat(np.arange(len(files)), [len(texts) for texts in found])
    texts = [text for task in found for text in task]
    split = np.full(len(texts), "", dtype="U5")
    return _with_names(Labelled(texts, labels, split, [f.stem for f in files]))


def agieval(data: Path) -> Labelled:
    """20 exams of AGIEval, of which some are twins; 20 examples of each, and prompts."""
    lines = {
        part: [json.loads(line) for line in (data / "agieval" / file).read_text().splitlines()]
        for part, file in (("train", "cards.jsonl"), ("test", "prompts.jsonl"))
    }
    names = [card["name"] for card in lines["train"]]
    told = [(text, card["name"], "train") for card in lines["train"] for text in card["examples"]]
    told += [(prompt["input"], prompt["adapter"], "test") for prompt in lines["test"]]
    texts, labels, splits = zip(*told, strict=True)
    numbers = np.array([names.index(label) for label in labels])
    return _with_names(Labelled(list(texts), numbers, np.array(splits, dtype="U5"), names))


def clinc(data: Path) -> tuple[Labelled, Labelled]:
    """CLINC150 by its 10 domains and by its 150 intents."""
    full = json.loads((data / "clinc150" / "data_full.json").read_text())
    domains = json.loads((data / "clinc150" / "domains.json").read_text())
    domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
    texts, split, intents = [], [], []
    for part, entries in full.items():
        for text, intent in entries:
            texts.append(text)
            split.append(part.removeprefix("oos_"))
            intents.append(intent)
    by_domain, by_intent = sorted(domains), sorted(domain_of)
    splits = np.array(split)
    by = {
        "domain": [by_domain.index(domain_of[i]) if i in domain_of else -1 for i in intents],
        "intent": [by_intent.index(i) if i in domain_of else -1 for i in intents],
    }
    return (
        _with_names(Labelled(texts, np.array(by["domain"]), splits, by_domain)),
        _with_names(Labelled(texts, np.array(by["intent"]), splits, by_intent)),
    )


def _with_names(labelled: Labelled) -> Labelled:
    names = [name.replace("_", " ") for name in labelled.names]
    return Labelled(
        [*labelled.texts, *names],
        np.concatenate([labelled.labels, np.arange(len(names))]),
        np.concatenate([labelled.split, np.full(len(names), "name")]),
        labelled.names,
    )


def mmlu(data: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Prompts, their subject (n,), and whether a weak and a strong model were right (n, 2)."""
    texts, subjects, scores = [], [], []
    for number, file in enumerate(sorted((data / "routellm_mmlu").glob("*.csv"))):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                texts.append(row["prompt"])
                subjects.append(number)
                scores.append([row[_WEAK] == "True", row[_STRONG] == "True"])
    return texts, np.array(subjects), np.array(scores, dtype=float)


def split(labelled: Labelled, few: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from (0 examples: the names), and rows to choose for (in scope or not)."""
    rng = np.random.default_rng(seed)
    is_name = labelled.split == "name"
    has_split = (labelled.split == "test").any()
    is_train = labelled.split == "train" if has_split else ~is_name
    rows = [np.flatnonzero(is_train & (labelled.labels == c)) for c in range(len(labelled.names))]
    train = np.concatenate([rng.permutation(r)[:few] for r in rows])
    if has_split:
        test = np.flatnonzero(labelled.split == "test")
    else:
        test = np.setdiff1d(np.flatnonzero(~is_name), train)
    return (np.flatnonzero(is_name) if few == 0 else train), test
