"""The rules in their order, and what they leave of a choice."""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.decisions import Decision
from cluster.rules import Rule
from router.adapters.constraints import Constraints
from router.rules.matching import Asked, Matcher


@dataclass(frozen=True)
class Ruling:
    """What the rules say of a prompt.

    Attributes:
        narrowing: those that leave fewer adapters, in order.
        chosen: the one that says who answers.
    """

    narrowing: tuple[Rule, ...] = ()
    chosen: Rule | None = None

    def objection(self, name: str) -> str | None:
        """The rule for which an adapter may not be chosen, in words; None where it may."""
        for rule in self.narrowing:
            if name in (rule.never or ()) or (rule.only is not None and name not in rule.only):
                return told(rule)
        return None

    def narrowed(self, constraints: Constraints) -> Constraints:
        """Of a request, with what the rules leave of them."""
        left, excluded = constraints.adapters, constraints.exclude
        for rule in self.narrowing:
            if rule.only is not None:
                left = rule.only if left is None else tuple(n for n in left if n in rule.only)
            excluded = (*excluded, *(rule.never or ()))
        return constraints.model_copy(update={"adapters": left, "exclude": excluded})

    def explained(self, decision: Decision) -> Decision:
        """A decision among what they leave, with the rules in it."""
        if not self.narrowing:
            return decision
        rules = " and ".join(told(rule) for rule in self.narrowing)
        excluded = {n: self.objection(n) or why for n, why in decision.excluded.items()}
        return decision.model_copy(
            update={
                "reason": f"by {rules}: {decision.reason}",
                "narrowed_by": tuple(rule.name for rule in self.narrowing),
                "excluded": excluded,
            }
        )


class Rulebook:
    """Rules, compiled."""

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self.rules = rules
        self._matchers = [(rule, Matcher(rule.when)) for rule in rules]

    def judge(self, asked: Asked, tenant: str, concerns: Callable[[Rule], bool]) -> Ruling:
        """The first rule that says who answers, and those before it that narrow the choice.

        Args:
            tenant: who asks.
            concerns: whether what a rule names is there for them; else it is passed over.
        """
        narrowing: list[Rule] = []
        for rule, matcher in self._matchers:
            if not (concerns(rule) and matcher.matches(asked, tenant)):
                continue
            if rule.adapter is not None or rule.base_model is not None:
                return Ruling(tuple(narrowing), rule)
            narrowing.append(rule)
        return Ruling(tuple(narrowing))


def told(rule: Rule) -> str:
    return f"the rule {rule.name!r}"
