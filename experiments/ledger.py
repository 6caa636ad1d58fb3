"""What the book says in numbers, read from the results of the experiments.

A number in the text is followed by a comment that says where it comes from, `FILE | GROUP | PATH | STATISTIC`:

    the mean is $-8.28$<!-- squares.json | vae | likelihood/exact/mean | mean -->

FILE lies in experiments/results, GROUP is one of its groups of runs, PATH leads to a number in each of these runs, its
parts separated by slashes, and STATISTIC makes one number of them, over the seeds:

    mean, sd, median, least, most    of the values
    low, high, half                  the ends of the mean's 95 % t-interval, and half its width
    runs                             how many values there are
    above X                          how many of them exceed X
    seed N                           the value of one seed
    fisher above X                   Fisher's p-value for the counts `above X` of two groups; GROUP is `a & b`

GROUP `a - b` stands for the differences of two groups, over the seeds that both have, and PATH `a - b` for those of two
numbers of each run. A statistic may begin with
`minus` or, for a percentage, with `100 x`: `100 x mean`, `minus low`, `minus 100 x mean`. In a table each bar needs a
backslash before it.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.runs import RESULTS, group_and_seed, stored

STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "sd": lambda values: np.std(values, ddof=1),
    "median": np.median,
    "least": np.min,
    "most": np.max,
    "low": lambda values: interval(values)[1],
    "high": lambda values: interval(values)[2],
    "half": lambda values: (interval(values)[2] - interval(values)[1]) / 2,
    "runs": len,
}


@functools.cache
def _read(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the runs of a results file, by group and seed."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for name, run in stored(path)["runs"].items():
        group, seed = group_and_seed(name)
        groups.setdefault(group, {})[seed] = run
    return groups


def runs_of(file: str, group: str) -> dict[int, dict[str, Any]]:
    """Return the runs of a group by their seeds, in order, from experiments/results/FILE."""
    found = _read(RESULTS / file).get(group)
    if found is None:
        raise KeyError(f"{file} has no runs of a group {group!r}")
    return dict(sorted(found.items()))


def _by_seed(file: str, group: str, path: str) -> dict[int, float]:
    if " - " in group:
        first, second = (_by_seed(file, part, path) for part in group.split(" - "))
        return {seed: value - second[seed] for seed, value in first.items() if seed in second}
    if " - " in path:
        first, second = (_by_seed(file, group, part) for part in path.split(" - "))
        return {seed: value - second[seed] for seed, value in first.items()}
    found = {}
    for seed, run in runs_of(file, group).items():
        value: Any = run
        for part in path.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise KeyError(f"{file} has no number at {path!r} in run {group}/{seed}")
        found[seed] = float(value)
    return found


def values(file: str, group: str, path: str) -> np.ndarray:
    """Return the number at `path` in each run of a group, in the order of the seeds, float64: (runs,).

    For a group `a - b`: the differences of two groups, over the seeds that both have.

    Raises:
        KeyError: there is no such group, or no such number in one of its runs.
    """
    return np.array(list(_by_seed(file, group, path).values()))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % t-interval, (mean, low, high), from at least two values."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, not {len(values)}")
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def folds(file: str, group: str, path: str = "prior/below 0.7", limit: float = 0.01) -> tuple[int, int]:
    """Return how many runs have a value above the limit, and of how many."""
    found = values(file, group, path)
    return int((found > limit).sum()), len(found)


def fisher(a: int, n: int, b: int, m: int) -> float:
    """Return the two-sided p-value of Fisher's exact test for a of n against b of m."""
    return float(stats.fisher_exact([[a, n - a], [b, m - b]])[1])


def lookup(reference: str) -> float:
    """Return the number that a comment refers to.

    Raises:
        ValueError: the reference has not four parts, or its statistic is unknown.
        KeyError: the results do not have what it names.
    """
    parts = [part.strip() for part in reference.replace("\\|", "|").split("|")]
    if len(parts) != 4:
        raise ValueError(f"{reference!r} is not of the form FILE | GROUP | PATH | STATISTIC")
    file, group, path, statistic = parts
    for prefix, factor in (("minus ", -1), ("100 x ", 100)):
        if statistic.startswith(prefix):
            return factor * lookup(" | ".join([file, group, path, statistic.removeprefix(prefix)]))
    kind, _, argument = statistic.rpartition(" ")
    if kind == "fisher above" and " & " in group:
        first, second = (folds(file, part, path, float(argument)) for part in group.split(" & "))
        return fisher(*first, *second)
    if kind == "above":
        return folds(file, group, path, float(argument))[0]
    if kind == "seed":
        found = _by_seed(file, group, path)
        if int(argument) not in found:
            raise KeyError(f"{file} has no run {group}/{argument}")
        return found[int(argument)]
    if statistic not in STATISTICS:
        raise ValueError(f"{reference!r}: there is no statistic {statistic!r}")
    return float(STATISTICS[statistic](values(file, group, path)))
