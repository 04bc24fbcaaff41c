"""How sure a number is: bootstrap intervals over classes and the queries within them.

Queries of one class are alike, and methods are compared on the same queries; so classes are drawn
first, then queries within each drawn class, and two methods are compared by the interval of their
*differences* query by query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds between which 95 % of its bootstrap draws lie."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Float[np.ndarray, " Q"],
    classes: Sequence[str] | np.ndarray,
    *,
    macro: bool = False,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of one value a query, with its percentile interval.

    Classes are drawn with replacement, then as many queries of each as it has.  With ``macro`` each
    class counts the same, otherwise each query.  For a paired comparison give the differences of two
    methods on the same queries.  Queries of value NaN (without a relevant item) are left out.

    Raises ValueError for other lengths, fewer than two classes or a level outside 0..1.
    """
    values, classes = np.asarray(values, np.float64), np.asarray(classes)
    if values.ndim != 1 or values.shape != classes.shape:
        raise ValueError(f"Give one class a value, got {list(values.shape)} values and {list(classes.shape)} classes.")
    if not 0 < level < 1:
        raise ValueError(f"The level is {level}: choose one between 0 and 1, such as 0.95.")
    there = ~np.isnan(values)
    groups = [values[there & (classes == name)] for name in np.unique(classes[there])]
    if len(groups) < 2:
        raise ValueError(f"A bootstrap over classes needs at least two of them, got {len(groups)}.")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(groups), size=(draws, len(groups)))
    sums, counts = np.zeros(draws), np.zeros(draws)
    for number, group in enumerate(groups):
        times = (drawn == number).sum(1)  # how often this class was drawn, for each draw
        means = group[rng.integers(len(group), size=(times.sum(), len(group)))].mean(1)
        weight = 1 if macro else len(group)
        sums += weight * np.bincount(np.repeat(np.arange(draws), times), means, draws)
        counts += weight * times
    mean = np.mean([group.mean() for group in groups]) if macro else np.concatenate(groups).mean()
    low, high = np.quantile(sums / counts, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high))


def compare(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    classes: Sequence[str] | np.ndarray,
    *,
    metric: str = "mAP@all",
    **options: Any,
) -> Interval:
    """By how much the second of two runs is better, with its paired interval.

    ``first`` and ``second`` are what `clair.evaluate` gave with ``per_query=True`` for the same queries
    in the same order, ``classes`` the queries' classes; ``options`` go to `bootstrap`.

    Raises ValueError where values by query are missing, or some query counts in one run only.
    """
    sides = []
    for scores in (first, second):
        if metric not in scores.get("per query", {}):
            raise ValueError(f"There is no {metric!r} by query: call evaluate with per_query=True and a fitting k.")
        sides.append(np.asarray(scores["per query"][metric]))
    if sides[0].shape != sides[1].shape or (np.isnan(sides[0]) != np.isnan(sides[1])).any():
        raise ValueError("The two runs have different queries: compare runs on the same queries, in the same order.")
    return bootstrap(sides[1] - sides[0], classes, **options)
