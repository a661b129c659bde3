"""What a sequence of Poisson-sampled Gaussian mechanisms costs, as (ε, δ).

One step: every row is taken with probability q, the sum of what the rows give (each of L2 norm at
most C) gets noise of deviation σ·C per coordinate. Neighbours differ by one row added or removed.

Rényi (`rdp`): Mironov, Talwar, Zhang 2019 (arXiv:1908.10530), section 3.3, gives ρ_α of a step;
steps add up; Balle et al. 2020 (arXiv:1905.09982), theorem 21, turns them into

    ε = min over α of  Σ ρ_α + ln((α - 1) / α) - (ln δ + ln α) / (α - 1).

Numerical (`prv`): Gopi, Lee, Wutschitz 2021 (arXiv:2106.02848) compose privacy loss variables by
FFT: 5 to 15 % tighter, and slower. They compose the loss of removing a row; that of adding one was
smaller in every case tried. Both are Opacus's; both give upper bounds.

Symbols: q sample rate, σ noise multiplier, T steps, α order.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np

from fedlora import cancel
from fedlora.errors import UserError

Kind = Literal["rdp", "prv"]
History: TypeAlias = list[tuple[float, float, int]]  # (σ, q, T), in the order that they were taken

# Opacus's own orders end at 63, which certifies no ε under ln(1/δ)/62; its binomials overflow past
# 1029. The large ones are costly and a tenth apart, which loses under .3 % between two neighbours.
ORDERS = range(2, 64)
LARGE = np.geomspace(64, 1024, 25).astype(int).tolist()
FRACTIONAL = 11  # orders up to here are refined: above, it gains under .1 %
NOISELESS = 1e-3  # a smaller σ counts as none: its ε is over a hundred thousand
GRID = 2**20  # points of a numerical privacy loss: up to a second and 100 MB
TRIES = 64  # of each search for a noise multiplier
ROUNDING = 1e-13  # δ per step under which the rounding of FFTs shows in ε (seen at q = 1)


@dataclass(frozen=True)
class Mechanism:
    """One client's plan: everything that fixes a step's privacy cost.

    `noise_multiplier` is σ, the noise's deviation over the clipping norm; `sample_rate` is q;
    `delta` the probability that the bound ε may fail with.
    """

    noise_multiplier: float
    sample_rate: float
    delta: float


def merged(history: Iterable[Sequence[float]]) -> History:
    """The same history with equal (σ, q) neighbours as one entry, and empty ones left out."""
    result: History = []
    for sigma, q, steps in history:
        if result and result[-1][:2] == (sigma, q):
            steps += result.pop()[2]
        if steps:
            result.append((float(sigma), float(q), int(steps)))
    return result


def epsilon(history: Iterable[Sequence[float]], delta: float, kind: Kind = "rdp") -> float:
    """An upper bound of ε at `delta`: 0.0 for an empty history, inf where a step had no noise.

    The order of entries does not matter. Raises UserError where `prv` can give no bound.
    """
    # Composition is commutative: sorted, one sum however the same steps were written down.
    total = merged(sorted(entry for entry in merged(history) if entry[1] > 0))
    if not total:
        return 0.0
    if any(sigma < NOISELESS for sigma, _, _ in total):
        return math.inf
    return _renyi(total, delta) if kind == "rdp" else _numerical(total, delta)


@lru_cache(maxsize=1024)
def noise_multiplier(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, kind: Kind = "rdp"
) -> float:
    """The smallest σ whose ε after `steps` is at most the target, and at least .99 of it.

    Raises UserError where no σ gives the target.
    """
    least = float(_bounds(0.0, LARGE, delta).min())
    if target_epsilon <= 1.01 * least:
        raise UserError(
            f"privacy.epsilon = {target_epsilon:g} cannot be certified at delta = {delta:g}, "
            f"however large the noise: the least is {1.01 * least:.2g}. Give a larger epsilon "
            "or delta"
        )

    if steps < 1:
        raise UserError(f"{steps} steps cost nothing, whatever the noise: none can be solved for")

    def cost(sigma: float) -> float:
        cancel.check()
        return epsilon([(sigma, sample_rate, steps)], delta, kind)

    if kind == "prv":  # costly, and a little below: start from there
        high = noise_multiplier(target_epsilon, delta, sample_rate, steps)
        return _solved(cost, high, 1.2, target_epsilon)
    # What the central limit says of many steps: ε ≈ μ·sqrt(2 ln(1/δ)), μ = q·sqrt(T) / σ.
    guess = sample_rate * math.sqrt(2 * steps * max(1.0, -math.log(delta))) / target_epsilon
    return _solved(cost, max(guess, 0.5), 2.0, target_epsilon)


def _solved(cost: Callable[[float], float], high: float, factor: float, target: float) -> float:
    """σ with .99·target ≤ cost(σ) ≤ target, for a falling `cost`, near `high`: false position in
    logarithms, where the cost is almost a straight line."""
    for _ in range(TRIES):
        if (cheap := cost(high)) <= target:
            break
        high *= factor
    else:
        raise _unsolved(target)
    low = high / factor
    for _ in range(TRIES):
        if (dear := cost(low)) > target:
            break
        high, cheap, low = low, dear, low / factor
    else:
        raise _unsolved(target)
    for _ in range(TRIES):
        if cheap >= 0.99 * target:
            return high
        share = 0.5
        if dear < math.inf and cheap > 0:
            share = math.log(dear / (0.995 * target)) / math.log(dear / cheap)
        share = min(max(share, 0.1), 0.9)
        middle = low ** (1 - share) * high**share
        found = cost(middle)
        if found <= target:
            high, cheap = middle, found
        else:
            low, dear = middle, found
    raise _unsolved(target)


def _unsolved(target: float) -> UserError:
    return UserError(
        f"no noise multiplier was found that gives privacy.epsilon = {target:g}, which asks for "
        "almost no noise or for more than there can be: give another epsilon, or "
        "privacy.noise_multiplier"
    )


def _renyi(history: History, delta: float) -> float:
    """ε by Rényi orders: whole ones, then finer ones around the best where it is small, or further
    ones where it is the last; all of them at once would be ten times as slow."""

    def bounds(orders: Sequence[float]) -> np.ndarray:
        rho = sum(steps * _step(sigma, q, tuple(orders)) for sigma, q, steps in history)
        return _bounds(rho, orders, delta)

    found = bounds(ORDERS)
    order, least = float(ORDERS[int(found.argmin())]), found.min()
    if order <= FRACTIONAL:
        for step in (0.5, 0.25, 0.12, 0.06, 0.03):
            near = (order - step, order + step)
            found = bounds(near)
            if found.min() < least:
                order, least = near[int(found.argmin())], found.min()
    if order == ORDERS[-1]:
        least = min(least, bounds(LARGE).min())
    return max(0.0, float(least)) if least == least else math.inf


@lru_cache(maxsize=4096)
def _step(sigma: float, q: float, orders: tuple[float, ...]) -> np.ndarray:
    """ρ of one step at every order, (orders,); infinite where Opacus cannot compute it, as at some
    orders where there is very much noise. Kept, as a client asks for the same each round."""
    return np.asarray([_step_at(sigma, q, order) for order in orders])


def _step_at(sigma: float, q: float, order: float) -> float:
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        (rho,) = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=[order])
    except (ArithmeticError, ValueError):
        return math.inf
    return max(0.0, rho) if math.isfinite(rho) else math.inf


def _bounds(rho: np.ndarray | float, orders: Sequence[float], delta: float) -> np.ndarray:
    """Theorem 21 of arXiv:1905.09982 at every order: (orders,)."""
    a = np.asarray(orders, dtype=float)
    return rho + np.log((a - 1) / a) - (math.log(delta) + np.log(a)) / (a - 1)


def _numerical(history: History, delta: float) -> float:
    """ε by numerical composition, with its error bound (half a percent, where the grid allows that)
    added; Rényi's where that is less."""
    from opacus.accountants import PRVAccountant

    steps = sum(n for _, _, n in history)
    if delta < ROUNDING * steps:
        raise _refused(f"delta = {delta:g} is too small for it after {steps} steps")
    bound = _renyi(history, delta)
    # What Opacus will take for its grid: losses in ±width, at a spacing that the error fixes.
    width = _renyi(history, delta / 4000) + 3
    points = 2 * width * math.sqrt(steps * math.log(12000 / delta) / 2)  # at an error of 1
    error = max(0.005 * min(bound, 20.0), points / GRID)
    if error > 0.5 or width > 700:  # the bound is proved for small errors; e^710 overflows
        raise _refused(f"ε ≈ {bound:.3g} after {steps} steps needs too fine a grid")
    accountant = PRVAccountant()
    accountant.history = history
    try:
        # It warns of its own inner Rényi orders, which only bound the grid, and of log(1 - q) at 1.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = float(accountant.get_epsilon(delta, eps_error=error))
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError) as why:
        raise _refused(str(why)) from why
    if not value <= bound + 3 * error:  # NaN, or more than what is known to hold
        raise _refused(f"it gave ε = {value:.3g} where at most {bound:.3g} is true")
    return min(max(0.0, value), bound)


def _refused(why: str) -> UserError:
    return UserError(
        f"the numerical accountant cannot bound this run's ε ({why}): set privacy.accountant=rdp"
    )
