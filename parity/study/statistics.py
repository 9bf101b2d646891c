"""Two samples of accuracies compared: difference, equivalence, spread, and how many seeds it takes.

Welch's form throughout: the two frameworks need not have the same variance. All values are in
points (percent), all tests at 5 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05
MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Comparison:
    """What k runs of each framework say.

    Attributes:
      means, spreads: of each sample (standard deviation with n - 1).
      difference: the first mean minus the second.
      interval: its 95 % confidence interval (Welch).
      p_difference: of Welch's t-test, that the means are equal.
      margin: the largest difference that counts as none.
      p_equivalence: of two one-sided tests (TOST), that they differ by the margin or more.
      p_variance: of the Brown-Forsythe test, that the variances are equal; None if neither varies,
        or of fewer than three runs a framework, whose deviations are all the same.
      seeds_equivalence: runs a framework with which the TOST would succeed with the power asked,
        if the true means were equal and the spreads as measured; None: more than 100,000.
      seeds_difference: the same, for Welch's test to notice a true difference of the margin.
      power: the power asked.

    """

    means: tuple[float, float]
    spreads: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_difference: float
    margin: float
    p_equivalence: float
    p_variance: float | None
    seeds_equivalence: int | None
    seeds_difference: int | None
    power: float

    @property
    def equivalent(self) -> bool:
        """Whether a difference of the margin or more is ruled out at 5 %."""
        return self.p_equivalence < ALPHA

    @property
    def different(self) -> bool:
        """Whether equal means are ruled out at 5 %."""
        return self.p_difference < ALPHA


def compare(a: Sequence[float], b: Sequence[float], margin: float, power: float) -> Comparison:
    """Compare two samples of at least two values each."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference = float(x.mean() - y.mean())
    spreads = float(x.std(ddof=1)), float(y.std(ddof=1))
    if max(spreads) == 0:  # every run the same: nothing is left to chance
        same, within = difference == 0, abs(difference) < margin
        return Comparison(
            (float(x.mean()), float(y.mean())),
            spreads,
            difference,
            (difference, difference),
            1.0 if same else 0.0,
            margin,
            0.0 if within else 1.0,
            None,
            2,
            2,
            power,
        )
    welch = stats.ttest_ind(x, y, equal_var=False)
    interval = welch.confidence_interval(1 - ALPHA)
    return Comparison(
        (float(x.mean()), float(y.mean())),
        spreads,
        difference,
        (float(interval.low), float(interval.high)),
        float(welch.pvalue),
        margin,
        tost(x, y, margin),
        float(stats.levene(x, y, center="median").pvalue) if min(len(x), len(y)) > 2 else None,
        seeds_needed(lambda n: power_of_equivalence(spreads, n, margin), power),
        seeds_needed(lambda n: power_of_difference(spreads, n, margin), power),
        power,
    )


def tost(x: np.ndarray, y: np.ndarray, margin: float) -> float:
    """The p-value of two one-sided Welch tests (Schuirmann, 1987): the larger of the two."""
    above = stats.ttest_ind(x + margin, y, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(x - margin, y, equal_var=False, alternative="less").pvalue
    return float(max(above, below))


def _spread_of_mean(spreads: tuple[float, float], n: int) -> tuple[float, float]:
    """(standard error of the difference of means, Welch's degrees of freedom) of n runs each."""
    parts = np.square(spreads) / n
    freedom = parts.sum() ** 2 / (np.square(parts).sum() / (n - 1))
    return float(np.sqrt(parts.sum())), float(freedom)


def power_of_difference(spreads: tuple[float, float], n: int, difference: float) -> float:
    """How often Welch's test, two-sided at 5 %, notices a true difference, with n runs each."""
    error, freedom = _spread_of_mean(spreads, n)
    most = stats.t.ppf(1 - ALPHA / 2, freedom)
    shift = difference / error
    return float(stats.nct.sf(most, freedom, shift) + stats.nct.cdf(-most, freedom, shift))


def power_of_equivalence(spreads: tuple[float, float], n: int, margin: float) -> float:
    """How often the TOST succeeds, at the least, if the true means are equal, with n runs each.

    Each one-sided test rejects with the chance p that its noncentral t-distribution gives; both
    do with 2 p - 1 or more (Bonferroni), which is exact where either hardly ever fails alone.
    """
    error, freedom = _spread_of_mean(spreads, n)
    most, shift = stats.t.ppf(1 - ALPHA, freedom), margin / error
    return float(max(0.0, 2 * stats.nct.sf(most, freedom, shift) - 1))


def seeds_needed(power_of, wanted: float) -> int | None:
    """The smallest n, from 2, with `power_of(n)` at least `wanted`; None above 100,000."""
    low, high = 1, 2
    while power_of(high) < wanted:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= wanted else (middle, high)
    return high
