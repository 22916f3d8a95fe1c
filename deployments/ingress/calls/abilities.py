"""Which models can answer a call, by what their replicas report."""

from collections.abc import Callable, Collection

from cluster.calls import CallKind
from cluster.errors import CannotAnswer
from cluster.settings import Settings
from router.adapters.constraints import Constraints

# What the replicas of a base model can do; empty as long as there are none.
TasksOf = Callable[[str], Collection[str]]


class Abilities:
    """Of all base models. One without replicas may turn out to be able: what it says will hold."""

    def __init__(self, settings: Settings, tasks_of: TasksOf) -> None:
        self._settings = settings
        self._tasks_of = tasks_of

    def narrowed(self, constraints: Constraints, kind: CallKind) -> Constraints:
        """Constraints that leave no model that cannot answer."""
        unable = tuple(m.id for m in self._settings.models if not self._can(m.id, kind))
        return constraints.model_copy(update={"unable": unable}) if unable else constraints

    def check(self, model: str, kind: CallKind) -> None:
        """Raises :class:`CannotAnswer` for a base model that cannot."""
        if not self._can(model, kind):
            raise self._refused(model, kind)

    def default(self, kind: CallKind, constraints: Constraints) -> str:
        """The base model that answers where nothing else says who: the usual one, or the first
        that can; raises :class:`CannotAnswer` where none can."""
        local_only = constraints.local_only
        usual = constraints.base_model or self._settings.default_base(local_only=local_only)
        may = (
            model.id
            for model in self._settings.models
            if constraints.base_model is None and not (local_only and model.is_elsewhere)
        )
        for model in (usual, *may):
            if self._can(model, kind):
                return model
        raise self._refused(usual, kind)

    def _can(self, model: str, kind: CallKind) -> bool:
        tasks = self._tasks_of(model)
        return not tasks or kind.task in tasks

    def _refused(self, model: str, kind: CallKind) -> CannotAnswer:
        able = [m.id for m in self._settings.models if kind.task in self._tasks_of(m.id)]
        return CannotAnswer(model, kind.path, kind.task, able)
