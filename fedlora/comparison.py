"""What several seeds say of several methods: means, deviations, and a paired test.

Every method is run once a seed, and all methods of a seed share its data, division and start, so
what they differ in is compared seed by seed. The seeds vary those three alone: a test over them
speaks of this data set and model, not of others.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev

MEASURES = (
    "score",
    "personalised",
    "test_loss",
    "perplexity",
    "bytes_up",
    "bytes_down",
    "seconds",
)
SAME = 1e-12  # differences of scores (fractions) that are nearer than this differ by rounding alone


@dataclass(frozen=True)
class Result:
    """A method's or baseline's run with one seed. Scores are fractions at the last round, test_loss
    nats of the global model on the server's rows then (for a language model those a token, and
    perplexity their exponential); bytes, seconds and epsilon are those of the whole run. A baseline
    sends nothing; a run that is not private has no epsilon, and one without a bound an infinite
    one. Bytes and seconds are None where they would tell who took part."""

    method: str
    seed: int
    score: float | None
    personalised: float | None
    test_loss: float | None
    perplexity: float | None
    trained_parameters: int
    bytes_up: int | None
    bytes_down: int | None
    seconds: float | None
    epsilon: float | None = None

    def dump(self) -> str:
        """As JSON, which has no infinity."""
        epsilon = "inf" if self.epsilon == math.inf else self.epsilon
        return json.dumps({**asdict(self), "epsilon": epsilon}, allow_nan=False)

    @classmethod
    def read(cls, text: str) -> "Result":
        facts = json.loads(text)
        epsilon = facts.pop("epsilon", None)
        return cls(**facts, epsilon=None if epsilon is None else float(epsilon))


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the sample deviation (over n - 1), which one seed does not have."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Summary:
    """A method over its seeds.

    Attributes:
        seeds: how many.
        measures: {name in MEASURES: its spread}; None where a seed's value is unknown, since a mean
            over the others would be one of other runs than its neighbours'.
        epsilon: the largest, as it bounds them all; None where a seed's is.
    """

    method: str
    seeds: int
    measures: Mapping[str, Spread | None]
    trained_parameters: int
    epsilon: float | None


@dataclass(frozen=True)
class Difference:
    """A method's score less that of the reference, over the seeds that both were run with.

    Attributes:
        mean: of the differences; None where a score is unknown.
        low, high: the 95% interval of that mean from Student's t with n - 1 degrees of freedom,
            not corrected for other comparisons.
        p: of the two-sided paired t-test. None, as are low and high, for one seed, and where the
            difference is the same in each: what has no spread has no scale to be tested on.
        adjusted: p by Holm's rule for all the p of this comparison.
    """

    method: str
    seeds: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None


def spread(values: Sequence[float | None]) -> Spread | None:
    """Their mean and sample deviation; None where one is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(mean(known), stdev(known) if len(known) > 1 else None)


def by_method(results: Iterable[Result]) -> dict[str, dict[int, Result]]:
    """{method: {seed: result}}, in the order in which they come."""
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        found.setdefault(result.method, {})[result.seed] = result
    return found


def summaries(results: Iterable[Result]) -> list[Summary]:
    """One a method."""
    return [_summary(method, [*runs.values()]) for method, runs in by_method(results).items()]


def _summary(method: str, runs: Sequence[Result]) -> Summary:
    spent = [run.epsilon for run in runs if run.epsilon is not None]
    return Summary(
        method,
        len(runs),
        {name: spread([getattr(run, name) for run in runs]) for name in MEASURES},
        runs[0].trained_parameters,
        max(spent) if len(spent) == len(runs) else None,
    )


def differences(results: Iterable[Result]) -> list[Difference]:
    """Every other method against the first. Baselines are among them, and so in the correction:
    the chance that any p of the table misleads is what Holm's rule bounds."""
    runs = by_method(results)
    reference, *others = runs.values() or [{}]
    found = [_difference(other, reference) for other in others]
    adjusted = iter(holm([d.p for d in found if d.p is not None]))
    return [d if d.p is None else replace(d, adjusted=next(adjusted)) for d in found]


def _difference(other: Mapping[int, Result], reference: Mapping[int, Result]) -> Difference:
    # Here, as a command that tests nothing does not wait for scipy.
    from scipy.stats import ttest_rel

    seeds = [seed for seed in other if seed in reference]
    method = next(iter(other.values())).method
    pairs = [(other[seed].score, reference[seed].score) for seed in seeds]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known or len(known) < len(pairs):
        return Difference(method, len(pairs), None)
    apart = [a - b for a, b in known]
    if len(apart) == 1 or max(apart) - min(apart) <= SAME:
        return Difference(method, len(apart), mean(apart))
    test = ttest_rel(*zip(*known, strict=True))
    low, high = test.confidence_interval(0.95)
    return Difference(method, len(apart), mean(apart), float(low), float(high), float(test.pvalue))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: the kth smallest of m, from k = 0, times m - k, at
    least as large as those before it and at most 1 (Holm 1979, "A simple sequentially rejective
    multiple test procedure"). It needs no independence, which differences to one reference lack.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for k, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - k) * ps[i]))
        adjusted[i] = largest
    return adjusted


def remarks(results: Sequence[Result]) -> list[str]:
    """What a reader of the tables has to know of the seeds and of the test."""
    runs = by_method(results)
    seeds = sorted({result.seed for result in results})
    if len(seeds) < 2:
        return ["one seed: no deviation and no test; --seeds 0,1,2 gives both"] if runs else []
    lines = [f"mean ± sample deviation over the seeds {', '.join(map(str, seeds))}"]
    missing = [method for method, own in runs.items() if len(own) < len(seeds)]
    if missing:
        lines.append(f"not all seeds are done of: {', '.join(missing)}")
    found = differences(results)
    tested = sum(d.p is not None for d in found)
    if tested:
        lines.append(
            f"differences of score to {next(iter(runs))}: two-sided paired t-test over seeds; "
            f"Holm's p is corrected for the {tested} in the table, the 95% interval is not"
        )
    if any(d.p is not None and d.seeds == 2 for d in found):
        lines.append(
            f"two seeds leave one degree of freedom: a mean difference has to be {_needed(2):.1f} "
            "times its standard error for p = 0.05, so that a large p shows next to nothing"
        )
    same = [d.method for d in found if d.mean is not None and d.seeds > 1 and d.p is None]
    if same:
        lines.append(
            f"no test where every seed has the same difference, without a spread to judge it by: "
            f"{', '.join(same)}"
        )
    return lines


def _needed(seeds: int) -> float:
    """The t that is significant at .05, two-sided."""
    from scipy.stats import t

    return float(t.ppf(0.975, seeds - 1))
