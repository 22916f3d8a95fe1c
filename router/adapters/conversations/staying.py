"""When a conversation stays with what answered it before. Pure: values in, a decision out.

A turn goes on with what was said (probability g, `follow_ups.py`), or it stands alone, and then it
is for what fits it best. Both are evidence, and so is how well what answered before fits the turn
by itself (h). With s the probability that goes to staying,

    s = 1 - (1 - g) (1 - h),      logit p = logit(fit of another) - logit(s)

another adapter takes over when p exceeds 1 - p by the margin. Where nothing fits the turn alone,
p is 1 - s, and the base model takes over.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import expit, logit

from cluster.adapters import Adapter
from cluster.decisions import Conversation, Decision, Held, Prompt
from router.adapters.choice import Terms
from router.adapters.constraints import CostWeights
from router.adapters.policy import SHOWN_CANDIDATES

_NEVER_SURE = 1e-6


@dataclass(frozen=True)
class Staying:
    """Of prompts that are asked about at once.

    Attributes:
        known: adapters that may have answered, by name.
    """

    terms: Terms
    known: Mapping[str, Adapter]

    def told(self, prompt: Prompt) -> Prompt:
        """The prompt without what answered before, where that may not answer again: it is read as
        one of which nothing is known."""
        if prompt.held is None or self._may_answer(prompt.held):
            return prompt
        return prompt.model_copy(update={"held": None})

    def decide(self, prompt: Prompt, alone: Decision, goes_on: float) -> Decision:
        """Of one turn.

        Args:
            alone: what is decided of the turn by itself.
        """
        held = prompt.held
        if held is None:
            return alone
        adapter = self.known.get(held.adapter or "")
        name = held.adapter or "the base model"
        if alone.adapter == held.adapter:
            return _as_before(alone, held, f"stayed with {name}")
        if not self._may_answer(held):
            return _told(alone, Conversation.SWITCHED, f"{name} may not be chosen any more")
        staying = 1 - (1 - goes_on) * (1 - _fit(alone, held.adapter))
        leaving = _leaving(alone, staying)
        if 2 * leaving - 1 >= self.terms.settings.stay_margin or self._is_told(alone):
            return _told(alone, Conversation.SWITCHED, f"left {name}, {1 - leaving:.2f} likely")
        if adapter is None:
            return _as_before(self._with_base(alone), held, "stayed with the base model")
        return self._stayed(alone, adapter, 1 - leaving)

    def _may_answer(self, held: Held) -> bool:
        adapter = self.known.get(held.adapter or "")
        if held.adapter is None:
            # Where nobody answers what fits no adapter, there is nothing to stay with.
            return self.terms.settings.out_of_scope == "base"
        return adapter is not None and self.terms.constraints.allows(adapter.card)

    def _is_told(self, alone: Decision) -> bool:
        """Whether more than likeness has a say: outcomes, or what the request itself demands."""
        if alone.adapter is None:
            return alone.in_scope >= alone.threshold > 0
        return self.terms.constraints.weights != CostWeights()

    def _with_base(self, alone: Decision) -> Decision:
        scope = {"in_scope": alone.in_scope, "threshold": alone.threshold}
        return self.terms.nothing(_why(alone)).model_copy(update=scope)

    def _stayed(self, alone: Decision, adapter: Adapter, confidence: float) -> Decision:
        """The same again, unless the constraints forbid that."""
        least = self.terms.constraints.min_confidence
        choice = self.terms.choose([self.terms.option(adapter, confidence)])
        if choice.best is None or (least is not None and confidence < least):
            why = choice.excluded.get(adapter.name, "min_confidence")
            return _told(alone, Conversation.SWITCHED, f"{adapter.name} may not answer: {why}")
        others = [c for c in alone.candidates if c.adapter != adapter.name]
        stayed = alone.model_copy(
            update={
                "adapter": adapter.name,
                "version": adapter.stable.number,
                "model": adapter.card.base_model,
                "confidence": round(confidence, 4),
                "reason": _why(alone),
                "candidates": (*choice.candidates, *others)[:SHOWN_CANDIDATES],
                "evidence": (),
            }
        )
        return _told(stayed, Conversation.STAYED, f"stayed with {adapter.name}")


def _fit(alone: Decision, adapter: str | None) -> float:
    """Probability that the turn by itself is for an adapter, as far as it is among the best."""
    scores = [c.score for c in alone.candidates if adapter is not None and c.adapter == adapter]
    return alone.in_scope * max(scores, default=0.0)


def _leaving(alone: Decision, staying: float) -> float:
    """Probability that the turn is not for what answered before."""
    if alone.adapter is None:
        return 1 - staying
    for_another, for_the_same = (
        logit(min(max(p, _NEVER_SURE), 1 - _NEVER_SURE)) for p in (alone.confidence, staying)
    )
    return float(expit(for_another - for_the_same))


def _why(alone: Decision) -> str:
    if alone.adapter is not None:
        return f"{alone.adapter} does not fit clearly better"
    if alone.in_scope >= alone.threshold:
        return "the turn goes on with what was said"
    return "the turn goes on with what was said, and fits no adapter by itself"


def _as_before(decision: Decision, held: Held, what: str) -> Decision:
    """A base model is chosen anew each time, by costs and outcomes: it may be another one."""
    if not held.model or decision.model in (None, held.model):
        return _told(decision, Conversation.STAYED, what)
    return _told(decision, Conversation.SWITCHED, f"{held.model} had answered")


def _told(decision: Decision, conversation: Conversation, what: str) -> Decision:
    reason = f"{what}: {decision.reason}"
    return decision.model_copy(update={"conversation": conversation, "reason": reason})
