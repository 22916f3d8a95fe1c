"""How far `roundhouse up` is with the adapters that its settings have it register."""

from collections.abc import Mapping

from pydantic import Field

from cluster.values import Record


class Preload(Record):
    """Told by `roundhouse up`, for the ingresses, which are ready when it is in place."""

    of: int = Field(description="adapters that the settings name")
    done: int = Field(0, description="of these, registered, there before, or failed")
    failed: Mapping[str, str] = Field(
        default_factory=dict, description="folder -> why its adapter could not be registered"
    )
    is_in_place: bool = Field(False, description="every process has taken in what is registered")

    @property
    def waiting(self) -> str:
        """What is still being waited for; empty when all is in place, or was told as failed."""
        if self.is_in_place:
            return ""
        if self.done < self.of:
            return f"{self.of - self.done} of {self.of} adapters of `preload`"
        return "every process to take `preload` in"
