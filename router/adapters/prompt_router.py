"""Which adapter a prompt needs, learnt from the cards in the store, and why."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from cluster.adapters import Adapter
from cluster.decisions import Conversation, Decision, Outcome, Prompt
from cluster.members import Report, RouterReport, Twins
from cluster.settings import BaseModelSettings, RouterSettings
from router.adapters.arrow import ArrowRouter
from router.adapters.cascade import Cascade
from router.adapters.choice import ByCards, Terms
from router.adapters.constraints import Constraints
from router.adapters.conversations.follow_ups import FollowUps
from router.adapters.conversations.staying import Staying
from router.adapters.costs import LiveCosts
from router.adapters.encoder import Encoder
from router.adapters.experts.exploring import Explorer
from router.adapters.features import FeatureExtractor, Features, Glances
from router.adapters.index import CardLearner, Index
from router.adapters.quality import Foretold, OutcomeLearner
from router.adapters.reader import Reader
from router.adapters.training.trained import HeldOut
from router.adapters.unseen.choice import ByOutcomes

# How likely a turn goes on with what was said, from where it is read with that.
_GOES_ON = 0.5
_EVERYDAY = Path(__file__).parent / "data" / "everyday_prompts.txt"


class PromptRouter:
    """Chooses an adapter per prompt, or none.

    What it has learnt, and what it knows of costs, is replaced as a whole: `choose` never waits.

    Args:
        base_models: that may answer when no adapter fits; the first is the default.
        weights: base model -> what knows its adapters by their weights.
        reader: reads cards, and the prompts that are not clear without it.
        held_out: of an encoder that was tuned on cards, what these were like to others.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: RouterSettings,
        base_models: Sequence[BaseModelSettings] = (),
        weights: Mapping[str, ArrowRouter] | None = None,
        reader: Reader | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self._extract = FeatureExtractor(encoder, reader)
        self._settings = settings
        self._base_models = tuple(base_models)
        self._weights = weights or {}
        everyday = self._extract(everyday_prompts())
        self._cards = CardLearner(self._extract, settings, everyday, held_out)
        self._follow_ups = FollowUps(self._extract.glance, everyday)
        self._outcomes = OutcomeLearner(self._extract, settings, everyday.unread)
        self._explorer = Explorer.of(settings)
        self._costs = LiveCosts.of(base_models, ())

    # -- learning ---------------------------------------------------------------------------

    def update(self, adapters: Mapping[str, Adapter], position: str = "") -> None:
        """Learn the cards; only texts not seen before are embedded."""
        self._cards.update(adapters, position)

    def refresh(self) -> None:
        """Learn everything anew when changes were worked in: takes seconds, changes nothing that
        was learnt meanwhile."""
        self._cards.refresh()

    @property
    def is_whole(self) -> bool:
        """Whether `refresh` has nothing to do."""
        return self._cards.index.is_whole

    def learn_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Learn anew how well each candidate answers, for each tenant."""
        self._outcomes.learn(outcomes)

    def observe(self, members: Iterable[Report]) -> None:
        """Take the newest reports of the replicas into the costs."""
        self._costs = LiveCosts.of(self._base_models, members)

    # -- choosing ---------------------------------------------------------------------------

    def choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        """One decision per prompt."""
        return self.choose_all([(prompts, constraints)])[0]

    def choose_all(self, asked: Sequence[tuple[list[Prompt], Constraints]]) -> list[list[Decision]]:
        """Decisions for each caller's prompts: all are embedded in one pass, and callers with equal
        constraints share the rest."""
        index = self._cards.index
        glanced = self._extract.glance([p.text for prompts, _ in asked for p in prompts])
        ends = list(accumulate(len(prompts) for prompts, _ in asked))
        answers: list[list[Decision]] = [[] for _ in asked]
        groups: dict[Constraints, list[int]] = {}
        for i, (_, constraints) in enumerate(asked):
            groups.setdefault(constraints, []).append(i)
        for constraints, members in groups.items():
            prompts = [prompt for i in members for prompt in asked[i][0]]
            rows = [row for i in members for row in range(ends[i] - len(asked[i][0]), ends[i])]
            decisions = iter(
                self._choose(index, prompts, glanced[np.array(rows, int)], constraints)
            )
            for i in members:
                answers[i] = [next(decisions) for _ in asked[i][0]]
        return answers

    def _choose(
        self, index: Index, prompts: list[Prompt], features: Features, constraints: Constraints
    ) -> list[Decision]:
        models = self._models_for(constraints)
        terms = Terms(
            constraints,
            self._settings,
            self._costs,
            models,
            self._versions(index),
            self._explorer,
        )
        staying = Staying(terms, index.by_name)
        decisions = self._by_cards(index, [*map(staying.told, prompts)], features, terms)
        self._help(ByOutcomes(terms, index.by_name), prompts, features, decisions)
        self._stay(staying, prompts, features, decisions)
        for i, prompt in enumerate(prompts):
            stayed = decisions[i].conversation is Conversation.STAYED
            if _fits_no_card(decisions[i]) and not stayed:
                found = terms.by_weights(prompt, index.silent, self._weights)
                decisions[i] = found or decisions[i]
        return [*map(_told, prompts, decisions)]

    def _models_for(self, constraints: Constraints) -> tuple[str, ...]:
        """The base models, those first that may be the default."""
        able = [m for m in self._base_models if m.id not in constraints.unable]
        if constraints.local_only:
            able.sort(key=lambda m: m.is_elsewhere)
        return tuple(m.id for m in able)

    def _by_cards(
        self, index: Index, prompts: list[Prompt], features: Features, terms: Terms
    ) -> list[Decision]:
        texts = [prompt.text for prompt in prompts]
        glances = Glances(self._extract, texts, features)
        foretold = self._outcomes.foretell(glances, terms.constraints.viewer.owner)
        if index.cascade is None:
            return [terms.nothing("no adapter has a card to learn from", f) for f in foretold]
        if not index.allowed(terms.constraints).any():
            return [terms.nothing("the constraints leave no adapter", f) for f in foretold]
        by_cards = ByCards(terms, index.adapters)
        decisions = self._decide(index, index.cascade, by_cards, glances, foretold)
        for i, prompt in enumerate(prompts):
            if not _says_something(prompt):
                decisions[i] = terms.nothing("the prompt has nothing to read")
        more = self._with_more(prompts, features, decisions)
        if more:
            texts = [*more.values()]
            glances = Glances(self._extract, texts, self._extract.glance(texts))
            foretold = self._outcomes.foretell(glances, terms.constraints.viewer.owner)
            again = self._decide(index, index.cascade, by_cards, glances, foretold)
            for (i, text), decision in zip(more.items(), again, strict=True):
                if decision.adapter is not None:
                    reason = f"by the conversation: {decision.reason}"
                    told = {"reason": reason, "decided_by": text}
                    decisions[i] = decision.model_copy(update=told)
        return decisions

    def _help(
        self,
        by_outcomes: ByOutcomes,
        prompts: list[Prompt],
        features: Features,
        decisions: list[Decision],
    ) -> None:
        """Put an adapter that outcomes speak for in the place of none."""
        rows = [
            i
            for i, prompt in enumerate(prompts)
            if _fits_no_card(decisions[i]) and _says_something(prompt)
        ]
        owner = by_outcomes.terms.constraints.viewer.owner
        is_asked = rows and self._settings.overrule_scope < 1
        near = self._outcomes.around(features[np.array(rows)], owner) if is_asked else []
        # Of none where nothing is known.
        for i, around in zip(rows, near, strict=False):
            decisions[i] = by_outcomes.decide(decisions[i], around) or decisions[i]

    def _with_more(
        self, prompts: list[Prompt], features: Features, decisions: list[Decision]
    ) -> dict[int, str]:
        """What those that fit nothing by themselves are read with, by their places: where it is not
        known what answered before, a turn that goes on ("and in Python?") with what was said."""
        rows = [
            i
            for i, p in enumerate(prompts)
            if (p.context or p.setting) and p.held is None and decisions[i].adapter is None
        ]
        if not rows:
            return {}
        likely = self._follow_ups(features[np.array(rows)])
        more = {}
        for i, goes_on in zip(rows, likely, strict=True):
            prompt = prompts[i]
            is_more = goes_on >= _GOES_ON or not _says_something(prompt)
            said = prompt.context if is_more and prompt.context else prompt.text
            text = "\n".join(part for part in (prompt.setting, said) if part)
            if text != prompt.text:
                more[i] = text
        return more

    def _stay(
        self,
        staying: Staying,
        prompts: list[Prompt],
        features: Features,
        decisions: list[Decision],
    ) -> None:
        """Put what a conversation stays with in the place of what its last turn alone says."""
        rows = [i for i, prompt in enumerate(prompts) if prompt.held is not None]
        if not rows or not self._settings.stay_margin:
            return
        likely = self._follow_ups(features[np.array(rows)])
        for i, goes_on in zip(rows, likely, strict=True):
            says = _says_something(prompts[i])
            decisions[i] = staying.decide(prompts[i], decisions[i], float(goes_on) if says else 1)

    @staticmethod
    def _decide(
        index: Index,
        cascade: Cascade,
        by_cards: ByCards,
        glances: Glances,
        foretold: list[Foretold],
    ) -> list[Decision]:
        constraints = by_cards.terms.constraints
        allowed = index.allowed(constraints)
        seen = index.allowed(Constraints(viewer=constraints.viewer))
        judged = cascade.judge(glances.glanced, seen, allowed, glances.read)
        return [by_cards.decide(*row) for row in zip(judged, foretold, strict=True)]

    # -- telling ----------------------------------------------------------------------------

    def report(self) -> RouterReport:
        """What the router knows of its own quality."""
        index = self._cards.index
        cascade = index.cascade
        if cascade is None:
            return RouterReport(versions=self._versions(index), cards=0)
        classifier = cascade.best
        told, names = classifier.report, [a.name for a in index.adapters]
        # By the classes that were fitted; where changes are worked in, these have moved.
        twins = told.twins if index.is_whole else ()
        return RouterReport(
            versions=self._versions(index),
            cards=len(names),
            examples=told.examples,
            landmarks=told.landmarks,
            is_whole=index.is_whole,
            temperature=classifier.confidence.temperature,
            threshold=classifier.scope.threshold,
            left_out_top1=told.top1,
            left_out_ece=told.ece,
            scope_auroc=classifier.scope.auroc,
            twins=tuple(Twins(a=names[a], b=names[b], confused=share) for a, b, share in twins),
            experts=self._outcomes.candidates,
            kernels=classifier.kernel.weights.told,
            asks_reader=cascade.gate.asks if cascade.gate else 0.0,
        )

    def _versions(self, index: Index) -> dict[str, str]:
        return {"features": self._extract.version, "cards": index.position}


def _fits_no_card(decision: Decision) -> bool:
    return decision.adapter is None and decision.in_scope <= decision.threshold


def _told(prompt: Prompt, decision: Decision) -> Decision:
    """With what decided: the prompt, where nothing else did."""
    by = {"decided_by": decision.decided_by or prompt.text, "left_out": prompt.left_out}
    return decision.model_copy(update=by)


def _says_something(prompt: Prompt) -> bool:
    return any(character.isalnum() for character in prompt.text)


def everyday_prompts() -> list[str]:
    """Prompts that no adapter was made for."""
    return _EVERYDAY.read_text().splitlines()
