"""How sure a measured share or mean is: Wilson intervals, bootstrap intervals, and pass@k."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Standard normal quantile of two-sided 95 %."""
RESAMPLES = 1000
"""Resamples of a bootstrap."""
SEED = 0
"""The same samples have the same interval."""
PASS_AT = (1, 10, 100, 1000, 10_000)
"""The k of pass@k, as far as there are samples."""

Samples = NDArray[np.float64]


def wilson(successes: int, trials: int) -> list[float]:
    """[low, high] of a share at 95 %: Wilson's score interval (1927, doi 10.2307/2276774); [0, 1] without trials."""
    if not trials:
        return [0.0, 1.0]
    share, square = successes / trials, Z * Z / trials
    centre = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low = centre - half if successes else 0.0
    high = centre + half if successes < trials else 1.0
    return [low, high]


def pass_at(k: int, trials: int, successes: int) -> float:
    """The chance that at least one of k samples succeeds, from `trials` samples of which `successes` did.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) of arXiv 2107.03374; needs 1 ≤ k ≤ trials.
    """
    return 1 - math.comb(trials - successes, k) / math.comb(trials, k)


def bootstrap(samples: Samples, statistic: Callable[[Samples], Samples]) -> list[list[float]]:
    """[low, high] at 95 % of each number that `statistic` gives: the percentile bootstrap (Efron 1979).

    `samples` has one row a sample. `statistic` gets the column sums over a resample (drawn with replacement, as many
    rows) and returns several numbers, so that what is compared is compared on the same resample.
    """
    generator = np.random.default_rng(SEED)
    count = len(samples)
    draws = [
        statistic(np.bincount(generator.integers(count, size=count), minlength=count) @ samples)
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    return [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
