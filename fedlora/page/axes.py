"""Axes: where a value lies between the ends of a panel, and the round numbers beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

STEPS = (1, 2, 5)
SAME = 1e-9  # of a value: what differs by less has no two ticks between


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, evenly or (log) by powers; ticks are values within."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, tick: float) -> str:
        """All ticks of an axis with as many decimals, unless it goes by powers."""
        if self.log or len(self.ticks) < 2:
            return f"{tick:.6g}"
        digits = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        return f"{tick:.{digits}f}"


def linear(values: Iterable[float], count: int = 5, pad: float = 0.06) -> Axis:
    """Around these values with some room, which does not go below 0 where they do not."""
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    apart = high - low if high - low > SAME * max(abs(low), abs(high)) else 0.0
    room = pad * apart or 0.1 * abs(high) or 1.0
    bottom = low - room
    return _even(max(0.0, bottom) if low >= 0 else bottom, high + room, count)


def from_zero(values: Iterable[float], count: int = 5) -> Axis:
    """From 0 to a little above the largest."""
    return _even(0.0, 1.03 * max([0.0, *values]) or 1.0, count)


def rounds(last: int, count: int = 7) -> Axis:
    """Whole numbers from 0 to the last round."""
    return _even(0.0, float(max(last, 1)), count, least=1.0)


def powers(values: Iterable[float], count: int = 6) -> Axis:
    """A logarithmic axis around these positive values; ticks at 1, 2 and 5 times powers of ten, or
    at the powers alone where those are too many."""
    values = list(values) or [1.0, 10.0]
    low, high = min(values) / 1.15, max(values) * 1.15
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (STEPS, (1,)):
        ticks = tuple(s * 10.0**e for e in exponents for s in steps if low <= s * 10.0**e <= high)
        if len(ticks) <= count:
            break
    return Axis(low, high, ticks, log=True)


def _even(low: float, high: float, count: int, least: float = 0.0) -> Axis:
    """With at most `count` ticks, the smallest step of 1, 2 or 5 times a power of ten that gives
    no more, and not below `least`."""
    exponent = math.floor(math.log10((high - low) / count)) - 1
    steps = (s * 10.0**e for e in range(exponent, exponent + 4) for s in STEPS)
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if step >= least and last - first < count:
            break
    return Axis(low, high, tuple(i * step for i in range(first, last + 1)))
