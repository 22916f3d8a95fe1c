"""From outcomes of prompts like one, which fits no card, to an adapter that helps. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.adapters import Adapter
from cluster.decisions import Decision
from router.adapters.choice import Terms
from router.adapters.outcomes.nearby import Gain, Surroundings
from router.adapters.policy import SHOWN_CANDIDATES, Option


@dataclass(frozen=True)
class ByOutcomes:
    """Decides about prompts that no card fits.

    Attributes:
        known: adapters that may have outcomes, with cards or without, by name.
    """

    terms: Terms
    known: Mapping[str, Adapter]

    def decide(self, alone: Decision, around: Surroundings) -> Decision | None:
        """The adapter that is sure to answer better than the base model; None where none is, or
        where it costs more than it gains.

        Args:
            alone: what was decided without outcomes; its base model would answer.
        """
        base = alone.model
        helpful = self._helpful(base, around) if base is not None else {}
        if base is None or not helpful:
            return None
        options = [self.terms.option(self.known[name], g.adapter) for name, g in helpful.items()]
        quality = max(gain.base for gain in helpful.values())
        options.append(Option(None, base, quality, self.terms.costs.base_model(base)))
        choice = self.terms.choose(options)
        if choice.best is None or choice.best.adapter is None:
            return None
        chosen, gain = self.known[choice.best.adapter], helpful[choice.best.adapter]
        adapters = [c for c in choice.candidates if c.adapter is not None]
        bases = [c for c in choice.candidates if c.adapter is None]
        return alone.model_copy(
            update={
                "adapter": chosen.name,
                "version": chosen.stable.number,
                "model": chosen.card.base_model,
                "confidence": round(gain.confidence, 4),
                "reason": f"{chosen.name}: by outcomes of prompts like it, {gain.adapter:.2f} "
                f"beside {gain.base:.2f} of {base}; {alone.reason}",
                "candidates": (*adapters[:SHOWN_CANDIDATES], *bases),
                "excluded": alone.excluded | choice.excluded,
            }
        )

    def _helpful(self, base: str, around: Surroundings) -> dict[str, Gain]:
        """Adapters that may be chosen, of which the outcomes leave little doubt."""
        constraints = self.terms.constraints
        allowed = [name for name in around.candidates if self._may_answer(name)]
        least = max(self.terms.settings.overrule_scope, constraints.min_confidence or 0)
        gains = around.gains(allowed, base)
        return {name: gain for name, gain in gains.items() if gain.confidence > least}

    def _may_answer(self, name: str) -> bool:
        adapter = self.known.get(name)
        return adapter is not None and self.terms.constraints.allows(adapter.card)
