"""Traces of requests for many adapters, as S-LoRA draws them (Sheng et al. 2024, section 7.1)."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Request:
    """One request: seconds from the start, which adapter, and how long prompt and answer are."""

    at_s: float
    adapter: int
    prompt_words: int
    answer_tokens: int


@dataclass(frozen=True)
class Load:
    """What a trace is drawn from.

    Attributes:
        adapters: how many there are; popularity: alpha of P(index < k) = (k / n)^alpha, so that 1
            is uniform and 0.1 very skewed.
        rate: requests a second; burstiness: coefficient of variation of the gaps, which are Gamma.
        prompt_words, answer_tokens: ranges of uniform lengths.
    """

    adapters: int
    rate: float
    duration_s: float
    popularity: float = 0.6
    burstiness: float = 1.0
    prompt_words: tuple[int, int] = (16, 63)
    answer_tokens: tuple[int, int] = (8, 31)
    seed: int = 0


def draw(load: Load) -> list[Request]:
    """A trace; the same seed gives the same one."""
    rng = np.random.default_rng(load.seed)
    shape = 1 / load.burstiness**2
    gaps = rng.gamma(shape, 1 / (shape * load.rate), round(2 * load.rate * load.duration_s) + 100)
    times = np.cumsum(gaps)
    times = times[times < load.duration_s]
    # The inverse of P(index < k): numpy's `power` draws from the density a x^(a-1).
    adapters = (rng.power(load.popularity, len(times)) * load.adapters).astype(int)
    # Names must not tell how popular an adapter is. Each keeps its popularity under every seed, as
    # in a fleet that has run for a while; `with_drift` is what changes it.
    names = np.random.default_rng(load.adapters).permutation(load.adapters)
    words = rng.integers(load.prompt_words[0], load.prompt_words[1] + 1, len(times))
    tokens = rng.integers(load.answer_tokens[0], load.answer_tokens[1] + 1, len(times))
    return [
        Request(float(t), int(names[a]), int(w), int(n))
        for t, a, w, n in zip(times, adapters, words, tokens, strict=True)
    ]


def with_drift(trace: list[Request], load: Load) -> list[Request]:
    """From half time on, every adapter has the popularity of another one."""
    moved = np.random.default_rng(load.seed + 1).permutation(load.adapters)
    half_s = load.duration_s / 2
    return [r if r.at_s < half_s else replace(r, adapter=int(moved[r.adapter])) for r in trace]


def with_flash_crowd(trace: list[Request], load: Load, share: float = 0.6) -> list[Request]:
    """In the middle third, one adapter that few asked for gets `share` of all requests."""
    rng = np.random.default_rng(load.seed + 2)
    counts = np.bincount([r.adapter for r in trace], minlength=load.adapters)
    one = int(np.argsort(-counts)[load.adapters // 10])
    third = load.duration_s / 3
    return [
        replace(r, adapter=one) if third <= r.at_s < 2 * third and rng.random() < share else r
        for r in trace
    ]


def popularity_of(trace: list[Request]) -> dict[str, float]:
    """What was drawn: the share of requests that went to the most popular adapters."""
    counts = np.sort(np.unique([r.adapter for r in trace], return_counts=True)[1])[::-1]
    shares = np.cumsum(counts) / counts.sum()
    return {
        "adapters asked for": len(counts),
        "share of the first": round(float(shares[0]), 3),
        "share of the first tenth": round(float(shares[max(1, len(counts) // 10) - 1]), 3),
    }


def fewest_loads(sequence: list[int], capacity: int) -> int:
    """Loads that a cache of `capacity` adapters cannot avoid (Belady 1966: evict what is needed
    last)."""
    after: dict[int, list[int]] = {}
    for i in range(len(sequence) - 1, -1, -1):
        after.setdefault(sequence[i], []).append(i)
    held: set[int] = set()
    loads = 0
    for adapter in sequence:
        after[adapter].pop()
        if adapter in held:
            continue
        loads += 1
        if len(held) >= capacity:
            never = len(sequence)
            held.remove(max(held, key=lambda a: after[a][-1] if after[a] else never))
        held.add(adapter)
    return loads
