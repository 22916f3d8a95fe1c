"""What was asked before, word for word.

A model's answer to one prompt is right again and again, or wrong: of what no likeness to other
prompts explains, most is the prompt's own. So to the Gaussian processes of `predictor` one is added
whose prompts are alike only when they are the same. Its posterior mean is what was left of the
prompt's own outcomes, times w / (w + k).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Outcomes of a prompt that count as much as all that other prompts say: an answer that is drawn
# anew may turn out otherwise.
_OTHERS = 1.0


@dataclass(frozen=True)
class Memory:
    """Attributes: left: (c,) by prompt, what is added to the predictions for it."""

    left: dict[int, np.ndarray]

    @classmethod
    def of(cls, texts: Sequence[str], residuals: np.ndarray, weights: np.ndarray) -> "Memory":
        """Args: residuals: (n, c) outcomes less what is predicted, NaN where there is none."""
        shares = np.minimum(weights, 1) / (np.minimum(weights, 1) + _OTHERS)
        left = np.nan_to_num(residuals * shares[:, None]).astype(np.float32)
        return cls(dict(zip(map(_mark, texts), left, strict=True)))

    def of_each(self, texts: Sequence[str], count: int) -> np.ndarray:
        """(n, c) what is added for each prompt; nothing for those that are new."""
        nothing = np.zeros(count, np.float32)
        return np.stack([self.left.get(_mark(text), nothing) for text in texts])


def _mark(text: str) -> int:
    return hash(" ".join(text.split()))
