"""Which adapter a prompt needs, learnt from the cards in the store, and why."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cluster.adapters import Adapter, Card
from cluster.decisions import Candidate, Decision, Evidence, Outcome, Prompt, Route
from cluster.members import Member, RouterReport, Twins
from cluster.settings import BaseModelSettings, RouterSettings
from router.adapters.arrow import ArrowRouter
from router.adapters.classifier import Classifier, Verdict
from router.adapters.constraints import Constraints
from router.adapters.costs import LiveCosts
from router.adapters.encoder import Encoder
from router.adapters.features import FeatureExtractor, Features
from router.adapters.policy import SHOWN_CANDIDATES, Choice, Option, choose
from router.adapters.quality import QualityPredictor, table_of

_EVERYDAY = Path(__file__).parent / "data" / "everyday_prompts.txt"
# Candidates that are weighed for a prompt; the rest of the ranking has no chance.
_WEIGHED = 16
# Up to this many texts learning anew takes well under a second; of more, changes are worked in.
_LEARN_ANEW = 500
# More texts at once are not worked in: that takes a matrix of their number squared.
_WORKED_IN = 1000
# Share of the best probability that an adapter must have to be chosen for being cheaper.
_WORTH = 0.1
# Likeness to a prompt of known outcome from which on a base model's outcomes speak for a prompt
# that an adapter fits.
_TRIED_NEARBY = 0.6
_EXCERPT_CHARS = 160
_EVIDENCE = 3
# What the response of weights is worth as a confidence.
_UNCALIBRATED = 0.5


@dataclass(frozen=True)
class _Index:
    """One state of the catalogue, ready to answer.

    Attributes:
        adapters: by class of the classifier.
        silent: adapters whose cards say nothing to learn from.
        position: of the store, when it was made.
        is_whole: the classifier was fitted to just these cards; else changes were worked in.
    """

    adapters: tuple[Adapter, ...] = ()
    silent: tuple[Adapter, ...] = ()
    classifier: Classifier | None = None
    position: str = ""
    is_whole: bool = True
    masks: dict[Constraints, np.ndarray] = field(default_factory=dict)

    def allowed(self, constraints: Constraints) -> np.ndarray:
        """(c,) whether a class may be chosen; kept, for ten thousand cards take milliseconds."""
        key = constraints.on_cards
        known = self.masks.get(key)
        if known is not None:
            return known
        found = [key.allows(a.card) for a in self.adapters]
        if len(self.masks) > 64:
            self.masks.clear()
        return self.masks.setdefault(key, np.array(found, dtype=bool))


class PromptRouter:
    """Chooses an adapter per prompt, or none.

    `update` builds a new index beside the one in use; `choose` always sees a whole one.

    Args:
        base_models: that may answer when no adapter fits; the first is the default.
        weights: base model -> what knows its adapters by their weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: RouterSettings,
        base_models: Sequence[BaseModelSettings] = (),
        weights: Mapping[str, ArrowRouter] | None = None,
    ) -> None:
        self._extract = FeatureExtractor(encoder)
        self._settings = settings
        self._base_models = tuple(base_models)
        self._costs = LiveCosts.of(base_models, ())
        self._weights = weights or {}
        self._quality: QualityPredictor | None = None
        self._features: dict[tuple[str, ...], Features] = {}
        self._outcome_features: dict[str, Features] = {}
        self._background = self._extract(everyday_prompts())
        self._index = _Index()
        self._changing = threading.Lock()

    # -- learning ---------------------------------------------------------------------------

    def update(self, adapters: Mapping[str, Adapter], position: str = "") -> None:
        """Learn the cards; only texts not seen before are embedded."""
        known = {name: a for name, a in sorted(adapters.items()) if _texts(a.card)}
        silent = tuple(a for name, a in sorted(adapters.items()) if name not in known)
        with self._changing:
            index = self._updated(self._index, known, position)
            self._index = replace(index, silent=silent)
            self._forget_all_but(known.values())

    def refresh(self) -> None:
        """Learn everything anew when changes were worked in: takes seconds, changes nothing that
        was learnt meanwhile."""
        with self._changing:
            before = self._index
            learnt = {a.name: self._embed(_texts(a.card)) for a in before.adapters}
        if before.is_whole:
            return
        fresh = replace(
            before, classifier=self._fit(list(learnt.values())), is_whole=True, masks={}
        )
        with self._changing:
            now = self._index
            known = {a.name: a for a in now.adapters}
            self._index = replace(self._updated(fresh, known, now.position), silent=now.silent)

    @property
    def is_whole(self) -> bool:
        """Whether `refresh` has nothing to do."""
        return self._index.is_whole

    def learn_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Learn anew how well each candidate answers."""
        texts, scores = table_of(outcomes)
        if not texts:
            self._quality = None
            return
        known = {text: f for text in texts if (f := self._outcome_features.get(text)) is not None}
        if new := [text for text in texts if text not in known]:
            read = self._extract(new).compact()
            known |= {text: read[i : i + 1] for i, text in enumerate(new)}
        self._outcome_features = known
        self._quality = QualityPredictor.fit(Features.stack([known[t] for t in texts]), scores)

    def observe(self, members: Iterable[Member]) -> None:
        """Take the newest reports of the replicas into the costs."""
        self._costs = LiveCosts.of(self._base_models, members)

    def _updated(self, index: _Index, known: dict[str, Adapter], position: str) -> _Index:
        """The index for other cards, by the way that is quicker."""
        before = {a.name: _texts(a.card) for a in index.adapters}
        wanted = {name: _texts(a.card) for name, a in known.items()}
        if before == wanted:
            # Versions and aliases moved, or tags: nothing of it is learnt from.
            adapters = tuple(known[a.name] for a in index.adapters)
            return replace(index, adapters=adapters, position=position, masks={})
        gone = [n for n, texts in before.items() if wanted.get(n) != texts]
        new = [n for n, texts in wanted.items() if before.get(n) != texts]
        size = sum(len(texts) for texts in wanted.values())
        changed = sum(len(wanted[n]) for n in new) + sum(len(before[n]) for n in gone)
        if index.classifier is None or size <= _LEARN_ANEW or changed > _WORKED_IN:
            adapters = tuple(known.values())
            learnt = [self._embed(_texts(a.card)) for a in adapters]
            return _Index(
                adapters, classifier=self._fit(learnt) if learnt else None, position=position
            )
        return self._worked_in(index, known, gone, new, position)

    def _worked_in(
        self,
        index: _Index,
        known: dict[str, Adapter],
        gone: list[str],
        new: list[str],
        position: str,
    ) -> _Index:
        classifier, names = index.classifier, [a.name for a in index.adapters]
        texts = {a.name: _texts(a.card) for a in index.adapters}
        for name in gone:
            label = names.index(name)
            classifier = classifier.without_class(label, self._embed(texts[name]))
            names.pop(label)
        if new:
            parts = [self._embed(_texts(known[name].card)) for name in new]
            labels = np.repeat(np.arange(len(parts)) + len(names), [len(p) for p in parts])
            classifier = classifier.with_classes(Features.stack(parts), labels)
            names += new
        return _Index(
            tuple(known[n] for n in names),
            classifier=classifier,
            position=position,
            is_whole=False,
        )

    def _fit(self, parts: list[Features]) -> Classifier:
        settings = self._settings
        return Classifier.fit(
            Features.stack(parts),
            np.repeat(np.arange(len(parts)), [len(p) for p in parts]),
            self._background,
            accept_rate=settings.accept_rate,
            in_scope_share=settings.in_scope_share,
            max_landmarks=settings.max_landmarks,
        )

    def _embed(self, texts: tuple[str, ...]) -> Features:
        if texts not in self._features:
            self._features[texts] = self._extract(list(texts)).compact()
        return self._features[texts]

    def _forget_all_but(self, adapters: Iterable[Adapter]) -> None:
        kept = {_texts(a.card) for a in adapters}
        self._features = {t: f for t, f in self._features.items() if t in kept}

    # -- choosing ---------------------------------------------------------------------------

    def choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        """One decision per prompt."""
        index = self._index
        decisions = self._by_cards(index, prompts, constraints)
        for i, prompt in enumerate(prompts):
            is_out = decisions[i].in_scope <= decisions[i].threshold
            if decisions[i].adapter is None and is_out:
                found = self._by_weights(index, prompt, constraints)
                decisions[i] = found or decisions[i]
        return decisions

    def _by_cards(
        self, index: _Index, prompts: list[Prompt], constraints: Constraints
    ) -> list[Decision]:
        if index.classifier is None:
            reason = "no adapter has a card to learn from"
            return [self._nothing(index, constraints, reason) for _ in prompts]
        allowed = index.allowed(constraints)
        if not allowed.any():
            reason = "the constraints leave no adapter"
            return [self._nothing(index, constraints, reason) for _ in prompts]
        decisions = self._decide(index, [p.text for p in prompts], constraints, allowed)
        for i, prompt in enumerate(prompts):
            if not any(character.isalnum() for character in prompt.text):
                reason = "the prompt has nothing to read"
                decisions[i] = self._nothing(index, constraints, reason)
        # A last turn that says little by itself ("and in Python?") is read with those before.
        unsure = [i for i, p in enumerate(prompts) if p.context and decisions[i].adapter is None]
        if unsure:
            contexts = [prompts[i].context for i in unsure]
            again = self._decide(index, contexts, constraints, allowed)
            for i, decision in zip(unsure, again, strict=True):
                if decision.adapter is not None:
                    reason = f"by the conversation: {decision.reason}"
                    decisions[i] = decision.model_copy(update={"reason": reason})
        return decisions

    def _by_weights(
        self, index: _Index, prompt: Prompt, constraints: Constraints
    ) -> Decision | None:
        """The adapter without a card whose weights respond to a prompt that no card fits."""
        if constraints.min_confidence is not None:
            return None  # what the weights say is not calibrated
        asked = [a for a in index.silent if constraints.allows(a.card)]
        scores = {}
        for model, weights in self._weights.items():
            digests = [a.stable.digest for a in asked if a.card.base_model == model]
            scores |= weights.scores(prompt.text, digests)
        ranked = sorted(asked, key=lambda a: -scores.get(a.stable.digest, 0.0))
        if not ranked or scores.get(ranked[0].stable.digest, 0.0) <= 1:
            return None
        best, score = ranked[0], scores[ranked[0].stable.digest]
        choice = self._choose([self._option(best, _UNCALIBRATED)], constraints)
        if choice.best is None:
            return None
        return Decision(
            adapter=best.name,
            version=best.stable.number,
            model=best.card.base_model,
            confidence=_UNCALIBRATED,
            route=Route.AUTO,
            reason=f"{best.name}: by its weights, which respond {score:.2f} times as much as to "
            "any everyday prompt",
            candidates=choice.candidates,
            versions=self._versions(index),
        )

    def report(self) -> RouterReport:
        """What the router knows of its own quality."""
        index = self._index
        if index.classifier is None:
            return RouterReport(versions=self._versions(index), cards=0)
        told = index.classifier.report
        names = [a.name for a in index.adapters]
        return RouterReport(
            versions=self._versions(index),
            cards=len(names),
            examples=told.examples,
            landmarks=told.landmarks,
            is_whole=index.is_whole,
            temperature=told.temperature,
            threshold=told.threshold,
            left_out_top1=told.top1,
            left_out_ece=told.ece,
            scope_auroc=told.scope_auroc,
            twins=tuple(Twins(a=names[a], b=names[b], confused=share) for a, b, share in told.twins)
            if index.is_whole
            else (),
            experts=self._quality.candidates if self._quality else (),
        )

    def _decide(
        self, index: _Index, texts: list[str], constraints: Constraints, allowed: np.ndarray
    ) -> list[Decision]:
        features = self._extract(texts)
        seen = index.allowed(Constraints(viewer=constraints.viewer))
        verdicts = index.classifier.judge(features, seen, allowed)
        rows = zip(verdicts, self._foretell(features), strict=True)
        return [self._decide_one(index, *row, constraints) for row in rows]

    def _foretell(self, features: Features) -> list[dict[str, float]]:
        """Predicted quality by candidate, of those that outcomes are known of; under the empty
        name how alike the nearest prompt of known outcome is."""
        predictor = self._quality
        if predictor is None:
            return [{} for _ in range(len(features))]
        predicted, nearest = predictor.foretell(features)
        return [
            {**dict(zip(predictor.candidates, row, strict=True)), "": near}
            for row, near in zip(predicted.tolist(), nearest.tolist(), strict=True)
        ]

    def _decide_one(
        self,
        index: _Index,
        verdict: Verdict,
        foretold: dict[str, float],
        constraints: Constraints,
    ) -> Decision:
        ranked = self._adapters_of(index, verdict)
        bases = self._bases(constraints, foretold)
        reason = self._why_none(index, verdict, constraints)
        if reason is not None:
            choice = self._choose(bases, constraints)
        else:
            choice, reason = self._weigh(ranked, bases, foretold, constraints)
        better = [index.adapters[label].card for label in verdict.before[:SHOWN_CANDIDATES]]
        excluded = {card.name: constraints.objection(card) or "" for card in better}
        adapter = choice.best.adapter if choice.best else None
        labels = {index.adapters[c].name: (c, p) for c, p in _ranking(verdict)}
        label, probability = labels.get(adapter, (verdict.classes[0], verdict.probabilities[0]))
        return Decision(
            adapter=adapter,
            version=index.adapters[label].stable.number if adapter else None,
            model=choice.best.model if choice.best else None,
            confidence=round(float(verdict.scope * probability), 4),
            in_scope=round(float(verdict.scope), 4),
            threshold=round(index.classifier.scope.threshold, 4),
            route=Route.AUTO,
            reason=reason,
            candidates=self._shown(choice, ranked, constraints),
            excluded=excluded | choice.excluded,
            evidence=self._evidence(index, verdict, label) if adapter else (),
            versions=self._versions(index),
        )

    def _why_none(self, index: _Index, verdict: Verdict, constraints: Constraints) -> str | None:
        """Why no adapter is to be chosen, if so."""
        threshold, least = index.classifier.scope.threshold, constraints.min_confidence
        if verdict.scope < threshold:
            return f"out of scope: {verdict.scope:.2f} is below the threshold {threshold:.2f}"
        confidence = verdict.scope * verdict.probabilities[0]
        if least is not None and confidence < least:
            best = index.adapters[verdict.classes[0]].name
            return f"{best}: confidence {confidence:.2f} is below min_confidence"
        return None

    def _weigh(
        self,
        ranked: list[Option],
        bases: list[Option],
        foretold: dict[str, float],
        constraints: Constraints,
    ) -> tuple[Choice, str]:
        """Choose among the adapters that fit, and base models of which is known that they do."""
        options = [o for o in ranked if o.quality >= _WORTH * ranked[0].quality]
        why = "probability"
        if foretold:
            # Outcomes say how well each answers what it was made for.
            typical = float(np.mean([foretold.get(o.name, 1.0) for o in options]))
            options = [
                replace(o, quality=o.quality * np.clip(foretold.get(o.name, typical), 0, 1))
                for o in options
            ]
            if foretold[""] >= _TRIED_NEARBY:
                options += [o for o in bases if o.model in foretold]
            why = "predicted quality"
        choice = self._choose(options, constraints)
        if choice.best is None:
            left = self._choose(bases, constraints)
            choice = replace(choice, best=left.best, excluded=choice.excluded | left.excluded)
            return choice, "the constraints on cost leave no adapter that fits"
        reason = f"{choice.best.name}: {why} {choice.best.quality:.2f}"
        if choice.passed_over is not None:
            reason += (
                f", nearly as good as {choice.passed_over.name} "
                f"({choice.passed_over.quality:.2f}) and sooner there"
            )
        return choice, reason

    def _shown(
        self, choice: Choice, ranked: list[Option], constraints: Constraints
    ) -> tuple[Candidate, ...]:
        """What was weighed and what came behind it; base models last."""
        weighed = {o.name for o, _ in choice.ranked} | choice.excluded.keys()
        rest = self._choose([o for o in ranked if o.name not in weighed], constraints)
        adapters = [c for c in (*choice.candidates, *rest.candidates) if c.adapter is not None]
        bases = [c for c in choice.candidates if c.adapter is None]
        return (*adapters[:SHOWN_CANDIDATES], *bases)

    def _choose(self, options: list[Option], constraints: Constraints) -> Choice:
        return choose(options, constraints, self._settings.cost_weights, self._settings.near_tie)

    def _adapters_of(self, index: _Index, verdict: Verdict) -> list[Option]:
        return [
            self._option(index.adapters[label], probability)
            for label, probability in _ranking(verdict)[:_WEIGHED]
        ]

    def _option(self, adapter: Adapter, quality: float) -> Option:
        key = f"{adapter.name}@{adapter.stable.number}"
        model = adapter.card.base_model
        cost = self._costs.adapter(model, key, adapter.stable)
        return Option(adapter.name, model, quality, cost)

    def _bases(self, constraints: Constraints, foretold: dict[str, float]) -> list[Option]:
        """The base models that may answer; the default one, unless outcomes tell them apart."""
        wanted = constraints.base_model
        models = [m.id for m in self._base_models if wanted in (None, m.id)]
        known = {m: foretold[m] for m in models if m in foretold}
        # Of the default nothing need be known: it is as good as the others, or there are none.
        typical = float(np.mean(list(known.values()))) if known else 1.0
        qualities = {m: typical for m in models[:1]} | known
        return [Option(None, m, q, self._costs.base_model(m)) for m, q in qualities.items()]

    def _evidence(self, index: _Index, verdict: Verdict, label: int) -> tuple[Evidence, ...]:
        """The examples of the adapter that made most of its score."""
        classifier = index.classifier
        made = classifier.contributions(verdict.likeness, label)
        own = np.flatnonzero(classifier.landmarks == label)
        top = own[np.argsort(-made[own])][:_EVIDENCE]
        texts = _texts(index.adapters[label].card)
        total = max(float(verdict.scores[verdict.classes == label][0]), 1e-6)
        return tuple(
            Evidence(
                example=texts[classifier.rows[i]][:_EXCERPT_CHARS],
                share=round(float(made[i]) / total, 3),
                wording=round(float(verdict.wording[i]), 3),
            )
            for i in top
            if made[i] > 0
        )

    def _nothing(self, index: _Index, constraints: Constraints, reason: str) -> Decision:
        choice = self._choose(self._bases(constraints, {}), constraints)
        return Decision(
            adapter=None,
            model=choice.best.model if choice.best else None,
            confidence=0,
            route=Route.AUTO,
            reason=reason,
            candidates=choice.candidates,
            versions=self._versions(index),
        )

    def _versions(self, index: _Index) -> dict[str, str]:
        return {"features": self._extract.version, "cards": index.position}


def everyday_prompts() -> list[str]:
    """Prompts that no adapter was made for."""
    return _EVERYDAY.read_text().splitlines()


def _ranking(verdict: Verdict) -> list[tuple[int, float]]:
    return list(zip(verdict.classes.tolist(), verdict.probabilities.tolist(), strict=True))


def _texts(card: Card) -> tuple[str, ...]:
    """What is learnt of a card; the same text twice says nothing more."""
    told = (*((card.description,) if card.description else ()), *card.examples)
    return tuple(dict.fromkeys(told))
