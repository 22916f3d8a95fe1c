"""How well the router chooses, on files of cards and prompts: `roundhouse eval-router`."""

import codecs
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from sklearn.metrics import roc_auc_score

from cluster.adapters import Adapter, Card, Share, Version
from cluster.decisions import Decision, Prompt
from cluster.errors import ConfigError
from cluster.settings import RouterSettings, explain
from router.adapters.calibration.left_out import calibration_error
from router.adapters.constraints import Constraints
from router.adapters.encoder import Encoder
from router.adapters.experts.predictor import QualityPredictor
from router.adapters.features import FeatureExtractor, Features, Glances
from router.adapters.prompt_router import PromptRouter
from router.adapters.prompts import clip
from router.adapters.reader import Reader

# Each of so many prompts is timed alone; the others go in batches.
_TIMED = 500
_BATCH = 32
_CURVE_POINTS = 101

Progress = Callable[[str, int, int], None]
Line = TypeVar("Line", bound=BaseModel)


def _legible(text: Any) -> Any:
    """With a mark for each half of a character, which JSON may have, and nothing can read."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_legible)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CardLine(_Line):
    """A line of CARDS."""

    name: str = Field(min_length=1)
    description: Text = ""
    examples: tuple[Text, ...] = ()


class PromptLine(_Line):
    """A line of PROMPTS; no adapter: out of scope."""

    input: Text
    adapter: str | None


class OutcomeLine(_Line):
    """A line of TRAIN or TEST: how well each candidate answered, and what it cost."""

    input: Text
    scores: dict[str, Share] = Field(min_length=1)
    costs: dict[str, Annotated[FiniteFloat, Field(ge=0, le=1e12)]] = Field(default_factory=dict)


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """Raises :class:`ConfigError`, which names the line and the field."""
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e
    lines = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line.decode())
            if not isinstance(found, dict):
                raise ConfigError(f"{path}:{number}: a JSON object is needed")
            lines.append(kind.model_validate(found))
        except ValidationError as e:
            raise ConfigError(f"{path}:{number}: {explain(e)}") from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"{path}:{number}: not UTF-8: {e.reason}") from e
        except (ValueError, RecursionError) as e:
            raise ConfigError(f"{path}:{number}: not JSON: {e}") from e
    if not lines:
        raise ConfigError(f"{path}: has no lines")
    return lines


# -- adapters -------------------------------------------------------------------------------


def evaluate_cards(
    cards: Sequence[CardLine],
    prompts: Sequence[PromptLine],
    encoder: Encoder,
    settings: RouterSettings,
    progress: Progress,
    reader: Reader | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Choose for every prompt as the cluster would; a report, and a line per prompt.

    Raises:
        ConfigError: two cards share a name, or a prompt names a card that is not there.
    """
    _check_names(cards, prompts)
    router = PromptRouter(encoder, settings, reader=reader)
    started = time.perf_counter()
    progress("learning the cards", 0, 1)
    router.update({card.name: _as_adapter(card) for card in cards})
    learnt_s = time.perf_counter() - started
    decisions, took_ms = _decide_all(router, [clip(p.input) for p in prompts], progress)
    told = router.report()
    pairs = list(zip(decisions, prompts, strict=True))
    right = np.array([d.adapter == p.adapter for d, p in pairs])
    # The confidence is of the best adapter, whether it was then chosen or not; where there was
    # nothing to read, none is.
    hit = np.array([p.adapter in [c.adapter for c in d.candidates[:1]] for d, p in pairs])
    report = {
        **_ranking(decisions, prompts),
        "latency_ms": {
            "p50": round(float(np.percentile(took_ms, 50)), 2),
            "p99": round(float(np.percentile(took_ms, 99)), 2),
        },
        "right": round(float(right.mean()), 4),
        "abstained": _abstained(decisions, prompts),
        "ece": round(calibration_error(np.array([d.confidence for d in decisions]), hit), 4),
        "cards": len(cards),
        "prompts": len(prompts),
        "learnt_s": round(learnt_s, 2),
        "kernels": told.kernels,
        "reader_asked": round(float(np.mean([d.has_read for d in decisions])), 4),
        "threshold": told.threshold,
        "twins": [twins.model_dump() for twins in told.twins],
        "versions": told.versions,
    }
    return report, [_as_line(decision) for decision in decisions]


def _check_names(cards: Sequence[CardLine], prompts: Sequence[PromptLine]) -> None:
    names = Counter(card.name for card in cards)
    name, times = names.most_common(1)[0]
    if times > 1:
        raise ConfigError(f"cards: the name {name!r} is there {times} times")
    if silent := [card.name for card in cards if not (card.description or any(card.examples))]:
        raise ConfigError(f"cards: {silent[0]!r} has neither a description nor examples")
    for number, prompt in enumerate(prompts, start=1):
        if prompt.adapter is not None and prompt.adapter not in names:
            raise ConfigError(f"prompts: number {number}: no card is named {prompt.adapter!r}")


def _as_adapter(card: CardLine) -> Adapter:
    """Unchecked: these cards need not obey the registry's limits."""
    texts = tuple(clip(text) for text in card.examples if text)
    made = Card.model_construct(
        name=card.name, base_model="", description=clip(card.description), examples=texts, tags=()
    )
    version = Version(number=1, digest="", size_bytes=0, rank=0, target_modules=(), created_at=0)
    return Adapter.model_construct(
        card=made, versions={1: version}, aliases={"stable": 1}, revision=0
    )


def _decide_all(
    router: PromptRouter, texts: list[str], progress: Progress
) -> tuple[list[Decision], list[float]]:
    decisions, took_ms = [], []
    anything = Constraints()
    router.choose([Prompt(text=texts[0])], anything)  # the first pass pays for set-up
    for i, text in enumerate(texts[:_TIMED]):
        progress("choosing, one by one", i, len(texts))
        started = time.perf_counter()
        decisions += router.choose([Prompt(text=text)], anything)
        took_ms.append((time.perf_counter() - started) * 1000)
    for i in range(_TIMED, len(texts), _BATCH):
        progress("choosing, in batches", i, len(texts))
        decisions += router.choose([Prompt(text=t) for t in texts[i : i + _BATCH]], anything)
    progress("choosing", len(texts), len(texts))
    return decisions, took_ms


def _ranking(decisions: list[Decision], prompts: Sequence[PromptLine]) -> dict[str, float | None]:
    """`top1` and `top3` of prompts in scope, whether it abstained or not; the abstention has an
    area of its own."""
    ranked = [[c.adapter for c in d.candidates if c.adapter] for d in decisions]
    pairs = list(zip(ranked, prompts, strict=True))
    inside = [(r, p.adapter) for r, p in pairs if p.adapter is not None]
    in_scope = np.array([p.adapter is not None for p in prompts])
    auroc = None
    if in_scope.any() and not in_scope.all():
        auroc = round(float(roc_auc_score(in_scope, [d.confidence for d in decisions])), 4)

    def share(k: int) -> float | None:
        return round(float(np.mean([a in r[:k] for r, a in inside])), 4) if inside else None

    return {"top1": share(1), "top3": share(3), "oos_auroc": auroc}


def _abstained(decisions: list[Decision], prompts: Sequence[PromptLine]) -> dict[str, float | None]:
    pairs = list(zip(decisions, prompts, strict=True))
    inside = [d.adapter is None for d, p in pairs if p.adapter is not None]
    outside = [d.adapter is None for d, p in pairs if p.adapter is None]
    return {
        "in_scope": round(float(np.mean(inside)), 4) if inside else None,
        "out_of_scope": round(float(np.mean(outside)), 4) if outside else None,
    }


def _as_line(decision: Decision) -> dict[str, Any]:
    return {
        "chosen": decision.adapter,
        "confidence": decision.confidence,
        "in_scope": decision.in_scope,
        "candidates": [
            {"adapter": c.adapter, "score": c.score} for c in decision.candidates if c.adapter
        ],
    }


# -- expert models --------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What quality each cost buys: means over the test prompts, cheapest first.

    Attributes:
        candidates: of each candidate alone, name -> (cost, quality).
        oracle: quality and cost if the best answer were always known, the cheapest of equals.
    """

    costs: np.ndarray
    qualities: np.ndarray
    candidates: dict[str, tuple[float, float]]
    weak: str
    strong: str
    oracle: tuple[float, float]

    @property
    def apgr(self) -> float | None:
        """Average performance gap recovered (RouteLLM 2024, section 2.2): the area between the
        curve and the weak candidate, over that between the strong and the weak one. None where the
        best candidate on average is the cheapest, too."""
        (low, weak), (high, strong) = self.candidates[self.weak], self.candidates[self.strong]
        if high <= low or strong <= weak:
            return None
        share = (self.costs - low) / (high - low)
        inside = (share >= -1e-9) & (share <= 1 + 1e-9)
        area = np.trapezoid(self.qualities[inside], share[inside])
        return float((area - weak) / (strong - weak))


def evaluate_outcomes(
    train: Sequence[OutcomeLine],
    test: Sequence[OutcomeLine],
    encoder: Encoder,
    progress: Progress,
    reader: Reader | None = None,
) -> tuple[dict[str, Any], Curve]:
    """Learn who answers what from TRAIN, choose on TEST at every price.

    Args:
        reader: is asked where that makes predictions better.

    Raises:
        ConfigError: there are not two candidates that all lines have, or too few lines.
    """
    names = sorted(set.intersection(*(set(line.scores) for line in (*train, *test))))
    if len(names) < 2:
        raise ConfigError("outcomes: fewer than two candidates have a score on every line")
    extract = FeatureExtractor(encoder, reader)
    learnt, asked = (_glance(extract, lines, progress) for lines in (train, test))
    progress("learning the outcomes", 0, 1)
    scores = {name: np.array([line.scores[name] for line in train]) for name in names}
    predictor = QualityPredictor.fit(learnt.glanced, scores, texts=learnt.texts, read=learnt.read)
    if predictor is None:
        raise ConfigError(f"outcomes: {len(train)} lines are too few to learn from")
    features = asked.read(np.arange(len(test))) if predictor.reads else asked.glanced
    curve = curve_of(
        predictor.predict(features, asked.texts),
        np.array([[line.scores[name] for name in names] for line in test]),
        *_costs(train, test, names),
        names,
    )
    few = np.linspace(0, len(curve.costs) - 1, min(_CURVE_POINTS, len(curve.costs))).astype(int)
    report = {
        "apgr": None if curve.apgr is None else round(curve.apgr, 4),
        "oracle": round(curve.oracle[1], 4),
        "points": [
            {"cost": round(float(cost), 4), "quality": round(float(quality), 4)}
            for cost, quality in zip(curve.costs[few], curve.qualities[few], strict=True)
        ],
        "weak": curve.weak,
        "strong": curve.strong,
        "candidates": {
            name: {"cost": round(cost, 4), "quality": round(quality, 4)}
            for name, (cost, quality) in curve.candidates.items()
        },
        "train": len(train),
        "test": len(test),
    }
    return report, curve


def _glance(extract: FeatureExtractor, lines: Sequence[OutcomeLine], progress: Progress) -> Glances:
    texts, parts = [clip(line.input) for line in lines], []
    for i in range(0, len(texts), 256):
        progress("reading the prompts", i, len(texts))
        parts.append(extract.glance(texts[i : i + 256]))
    return Glances(extract, texts, Features.stack(parts))


def _mean_cost(name: str, lines: Sequence[OutcomeLine]) -> float:
    costs = [line.costs[name] for line in lines if name in line.costs]
    return float(np.mean(costs)) if costs else 0.0


def _costs(
    train: Sequence[OutcomeLine], test: Sequence[OutcomeLine], names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cost of each candidate, which is known when it is chosen, and its cost on each test
    prompt. Without costs in the lines, the candidate that is better on average costs 1, the next
    one less, down to 0."""
    told = [*(line for line in train if line.costs), *(line for line in test if line.costs)]
    if all(any(name in line.costs for line in told) for name in names):
        known = np.array([_mean_cost(name, train) or _mean_cost(name, test) for name in names])
        mean = dict(zip(names, known.tolist(), strict=True))
        return known, np.array([[line.costs.get(n, mean[n]) for n in names] for line in test])
    means = np.mean([[line.scores[n] for n in names] for line in train], axis=0)
    known = means.argsort().argsort() / (len(names) - 1)
    return known, np.broadcast_to(known, (len(test), len(names)))


def curve_of(
    predicted: np.ndarray,
    scores: np.ndarray,
    known_costs: np.ndarray,
    costs: np.ndarray,
    names: list[str],
) -> Curve:
    """What quality each cost buys, of n test prompts and c candidates.

    Args:
        predicted: (n, c) quality.
        scores: (n, c) true quality.
        known_costs: (c,) that the choice is made by.
        costs: (n, c) that were paid.
    """
    rows = np.arange(len(scores))
    points = []
    for price in _prices(predicted, known_costs):
        chosen = (predicted - price * known_costs).argmax(axis=1)
        points.append((costs[rows, chosen].mean(), scores[rows, chosen].mean()))
    by_cost, by_quality = costs.mean(axis=0), scores.mean(axis=0)
    weak, strong = int(by_cost.argmin()), int(by_quality.argmax())
    points += [(by_cost[i], by_quality[i]) for i in (weak, strong)]
    front = np.array(sorted(points))
    best = (scores - 1e-9 * costs).argmax(axis=1)
    return Curve(
        front[:, 0],
        front[:, 1],
        {
            name: (float(cost), float(quality))
            for name, cost, quality in zip(names, by_cost, by_quality, strict=True)
        },
        names[weak],
        names[strong],
        (float(costs[rows, best].mean()), float(scores[rows, best].mean())),
    )


def _prices(predicted: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Weights of cost (Tryage's lambda) at which some prompt changes hands: from paying anything
    for a better answer, through paying to be rid of cheap ones, to paying nothing."""
    gains = [
        (predicted[:, i] - predicted[:, j]) / (costs[i] - costs[j])
        for i in range(len(costs))
        for j in range(i)
        if costs[i] != costs[j]
    ]
    found = np.unique(np.concatenate(gains)) if gains else np.zeros(1)
    few = found[np.linspace(0, len(found) - 1, min(2000, len(found))).astype(int)]
    return np.concatenate([[few[0] - 1], few, [few[-1] + 1]])


def draw(curve: Curve, path: Path) -> None:
    """The Pareto front: what quality each cost buys, beside each candidate alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    label = "router" if curve.apgr is None else f"router (APGR {curve.apgr:.3f})"
    axes.plot(curve.costs, curve.qualities, label=label)
    ends = [curve.candidates[curve.weak], curve.candidates[curve.strong]]
    axes.plot(*zip(*ends, strict=True), "--", color="grey", label="at random")
    for name, (cost, quality) in curve.candidates.items():
        axes.plot(cost, quality, "o", color="black")
        axes.annotate(name, (cost, quality), textcoords="offset points", xytext=(6, -12))
    axes.plot(*curve.oracle, "*", markersize=12, color="tab:green", label="oracle")
    axes.set(xlabel="mean cost", ylabel="mean quality", title="What quality each cost buys")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
