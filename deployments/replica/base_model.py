"""The base model that an engine has, and whether an adapter's version was made for it."""

from cluster.adapters import Adapter, BaseModelFacts, Version
from cluster.errors import AdapterLoadFailed


class BaseModel:
    """Known whole once the engine has started.

    Attributes:
        facts: what adapters must match; None before the engine has said.
    """

    def __init__(self, model_id: str) -> None:
        self.id = model_id
        self.facts: BaseModelFacts | None = None

    def check(self, adapter: Adapter, version: Version) -> None:
        """Weights that were checked against another base model would answer with noise.

        Raises:
            AdapterLoadFailed: the version was registered for another one.
        """
        own = self.facts.fingerprint if self.facts else ""
        if version.base_fingerprint in ("", own):
            return
        raise AdapterLoadFailed(
            f"{adapter.name}@{version.number} was registered for a base model with fingerprint "
            f"{version.base_fingerprint}, {self.id} now has {own}; register it again for this one"
        )
