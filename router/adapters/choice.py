"""From what is known of a prompt to the decision: what fits, what it costs, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.adapters import Adapter
from cluster.decisions import Candidate, Decision, Evidence, Prompt, Route
from cluster.settings import RouterSettings
from router.adapters.arrow import ArrowRouter
from router.adapters.cascade import Judged
from router.adapters.classifier import Verdict
from router.adapters.constraints import Constraints
from router.adapters.costs import LiveCosts
from router.adapters.experts.exploring import Explorer
from router.adapters.index import texts_of
from router.adapters.policy import SHOWN_CANDIDATES, Choice, Option, choose
from router.adapters.quality import Foretold

# Candidates that are weighed for a prompt; the rest of the ranking has no chance.
_WEIGHED = 16
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
class Terms:
    """What holds for every prompt that a caller asks about at once.

    Attributes:
        base_models: that may answer when no adapter fits; the first is the default.
        versions: of the features and of the cards, as decisions tell them.
        explorer: tries what little is known of; None: nothing is chosen to learn of it.
    """

    constraints: Constraints
    settings: RouterSettings
    costs: LiveCosts
    base_models: tuple[str, ...]
    versions: dict[str, str]
    explorer: Explorer | None = None

    def choose(self, options: list[Option]) -> Choice:
        settings = self.settings
        return choose(options, self.constraints, settings.cost_weights, settings.near_tie)

    def settle(self, options: list[Option], untried: Sequence[Option] = ()) -> Choice:
        """Choose, or explore.

        Args:
            untried: what only exploring would choose.
        """
        choice = self.choose(options)
        if self.explorer is None:
            return choice
        return self.explorer.explore(choice, [*options, *untried], self.choose)

    def option(self, adapter: Adapter, quality: float) -> Option:
        key = adapter.key(adapter.stable)
        model = adapter.card.base_model
        cost = self.costs.adapter(model, key, adapter.stable)
        return Option(adapter.name, model, quality, cost)

    def bases(self, foretold: Foretold) -> list[Option]:
        """The base models that may answer; the default one, unless outcomes tell them apart."""
        # Of the default nothing need be known: it is as good as the others, or there are none.
        return [
            self._base(m, foretold.qualities.get(m, foretold.typical), foretold)
            for i, m in enumerate(self._allowed())
            if i == 0 or m in foretold.qualities
        ]

    def without_adapter(self, foretold: Foretold) -> Choice:
        """Choose among the base models, or explore them."""
        bases = self.bases(foretold)
        taken = {option.model for option in bases}
        untried = [m for m in self._allowed() if m not in taken]
        return self.settle(
            bases, [self._base(m, foretold.belief(m).mean, foretold) for m in untried]
        )

    def _allowed(self) -> list[str]:
        wanted = self.constraints.base_model
        return [m for m in self.base_models if wanted in (None, m)]

    def _base(self, model: str, quality: float, foretold: Foretold) -> Option:
        cost = self.costs.base_model(model)
        return Option(None, model, quality, cost, foretold.belief(model).doubt)

    def nothing(self, reason: str, foretold: Foretold | None = None) -> Decision:
        """The decision for a prompt that no adapter is asked about.

        Args:
            foretold: what outcomes say; None: nothing is asked of them, and nothing explored.
        """
        if foretold is None:
            choice = self.choose(self.bases(Foretold()))
        else:
            choice = self.without_adapter(foretold)
        return Decision(
            adapter=None,
            model=choice.best.model if choice.best else None,
            confidence=0,
            route=Route.AUTO,
            reason=reason + _explored(choice),
            candidates=choice.candidates,
            excluded=choice.excluded,
            explored=choice.explored_over is not None,
            versions=self.versions,
        )

    def by_weights(
        self, prompt: Prompt, silent: Sequence[Adapter], weights: Mapping[str, ArrowRouter]
    ) -> Decision | None:
        """The adapter without a card whose weights respond to a prompt that no card fits.

        Args:
            weights: base model -> what knows its adapters by their weights.
        """
        if self.constraints.min_confidence is not None:
            return None  # what the weights say is not calibrated
        asked = [a for a in silent if self.constraints.allows(a.card)]
        scores: dict[str, float] = {}
        for model, known in weights.items():
            digests = [a.stable.digest for a in asked if a.card.base_model == model]
            scores |= known.scores(prompt.text, digests)
        ranked = sorted(asked, key=lambda a: -scores.get(a.stable.digest, 0.0))
        if not ranked or scores.get(ranked[0].stable.digest, 0.0) <= 1:
            return None
        best, score = ranked[0], scores[ranked[0].stable.digest]
        choice = self.choose([self.option(best, _UNCALIBRATED)])
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
            versions=self.versions,
        )


@dataclass(frozen=True)
class ByCards:
    """Decides by what the cards say, of which one at least may be chosen.

    Attributes:
        adapters: by class of the classifiers.
    """

    terms: Terms
    adapters: tuple[Adapter, ...]

    def decide(self, judged: Judged, foretold: Foretold) -> Decision:
        """Of one prompt."""
        verdict, threshold = judged.verdict, judged.by.scope.threshold
        ranking = _ranking(verdict)[:_WEIGHED]
        ranked = [self.terms.option(self.adapters[c], p) for c, p in ranking]
        bases = self.terms.bases(foretold)
        reason = self._why_none(verdict, threshold)
        if reason is not None:
            choice = self.terms.without_adapter(foretold)
        else:
            choice, reason = self._weigh(ranked, bases, foretold)
        reason += _explored(choice)
        adapter = choice.best.adapter if choice.best else None
        labels = {self.adapters[c].name: (c, p) for c, p in ranking}
        label, probability = labels[adapter] if adapter in labels else ranking[0]
        return Decision(
            adapter=adapter,
            version=self.adapters[label].stable.number if adapter else None,
            model=choice.best.model if choice.best else None,
            confidence=round(float(verdict.scope * probability), 4),
            in_scope=round(float(verdict.scope), 4),
            threshold=round(threshold, 4),
            route=Route.AUTO,
            reason=reason,
            candidates=self._shown(choice, ranked),
            excluded=self._better(verdict) | choice.excluded,
            evidence=self._evidence(judged, label) if adapter else (),
            explored=choice.explored_over is not None,
            has_read=judged.has_read,
            versions=self.terms.versions,
        )

    def _why_none(self, verdict: Verdict, threshold: float) -> str | None:
        """Why no adapter is to be chosen, if so."""
        least = self.terms.constraints.min_confidence
        if verdict.scope < threshold:
            return f"out of scope: {verdict.scope:.2f} is below the threshold {threshold:.2f}"
        confidence = verdict.scope * verdict.probabilities[0]
        if least is not None and confidence < least:
            best = self.adapters[verdict.classes[0]].name
            return f"{best}: confidence {confidence:.2f} is below min_confidence"
        return None

    def _weigh(
        self, ranked: list[Option], bases: list[Option], foretold: Foretold
    ) -> tuple[Choice, str]:
        """Choose among the adapters that fit, and base models of which is known that they do."""
        options = [o for o in ranked if o.quality >= _WORTH * ranked[0].quality]
        why, qualities = "probability", foretold.qualities
        if qualities:
            # Outcomes say how well each answers what it was made for.
            typical = float(np.mean([qualities.get(o.name, 1.0) for o in options]))
            options = [
                replace(
                    o,
                    quality=o.quality * np.clip(qualities.get(o.name, typical), 0, 1),
                    doubt=o.quality * foretold.belief(o.name).doubt,
                )
                for o in options
            ]
            if foretold.nearest >= _TRIED_NEARBY:
                options += [o for o in bases if o.model in qualities]
            why = "predicted quality"
        choice = self.terms.settle(options)
        if choice.best is None:
            left = self.terms.choose(bases)
            choice = replace(choice, best=left.best, excluded=choice.excluded | left.excluded)
            return choice, "the constraints on cost leave no adapter that fits"
        reason = f"{choice.best.name}: {why} {choice.best.quality:.2f}"
        if choice.passed_over is not None:
            reason += (
                f", nearly as good as {choice.passed_over.name} "
                f"({choice.passed_over.quality:.2f}) and sooner there"
            )
        return choice, reason

    def _better(self, verdict: Verdict) -> dict[str, str]:
        """Adapters that fit better, and the constraint that excludes each."""
        cards = [self.adapters[label].card for label in verdict.before[:SHOWN_CANDIDATES]]
        return {card.name: self.terms.constraints.objection(card) or "" for card in cards}

    def _shown(self, choice: Choice, ranked: list[Option]) -> tuple[Candidate, ...]:
        """What was weighed and what came behind it; base models last."""
        weighed = {o.name for o, _ in choice.ranked} | choice.excluded.keys()
        rest = self.terms.choose([o for o in ranked if o.name not in weighed])
        adapters = [c for c in (*choice.candidates, *rest.candidates) if c.adapter is not None]
        bases = [c for c in choice.candidates if c.adapter is None]
        return (*adapters[:SHOWN_CANDIDATES], *bases)

    def _evidence(self, judged: Judged, label: int) -> tuple[Evidence, ...]:
        """The examples of the adapter that made most of its score."""
        texts = texts_of(self.adapters[label].card)
        return tuple(
            Evidence(
                example=texts[ground.example][:_EXCERPT_CHARS],
                share=round(ground.share, 3),
                wording=round(ground.kernels["wording"], 3),
                kernels={name: round(share, 3) for name, share in ground.kernels.items()},
            )
            for ground in judged.by.grounds(judged.verdict, label, _EVIDENCE)
        )


def _explored(choice: Choice) -> str:
    """What the reason says where it is not what is expected to be best that was chosen."""
    best, over = choice.best, choice.explored_over
    if best is None or over is None:
        return ""
    return (
        f"; explored: {best.name} may be better than the expected {best.quality:.2f} "
        f"(± {best.doubt:.2f}), {over.name} is expected at {over.quality:.2f}"
    )


def _ranking(verdict: Verdict) -> list[tuple[int, float]]:
    return list(zip(verdict.classes.tolist(), verdict.probabilities.tolist(), strict=True))
