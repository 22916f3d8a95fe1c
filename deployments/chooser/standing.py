"""The prompt router that answers, until another knows as much and takes its place."""

import asyncio

from cluster.members import RouterReport
from router.adapters.prompt_router import PromptRouter


class Standing:
    """Whoever asks reads `router` anew each time.

    Attributes:
        encoder: id of the trained encoder that it reads with; None: the settings' own.
        problem: why it is not another one.
        changing: held while the router is told of cards, and while another takes its place: neither
            may miss what the other was told.
    """

    def __init__(self, router: PromptRouter) -> None:
        self.router = router
        self.encoder: str | None = None
        self.problem = ""
        self.changing = asyncio.Lock()

    def report(self) -> RouterReport:
        which = {"encoder": self.encoder or "", "encoder_problem": self.problem}
        return self.router.report().model_copy(update=which)
