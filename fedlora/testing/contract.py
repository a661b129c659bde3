"""One call that holds a method to the contract."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from fedlora.declared import declared
from fedlora.errors import MethodError
from fedlora.strategy import Strategy
from fedlora.testing.promises import PROMISES, Case, Promise, Truth


def check_strategy(
    strategy: Strategy,
    adapter: str | None = None,
    *,
    exact: bool = False,
    expected: Truth | None = None,
    weighted: bool = True,
) -> None:
    """Hold a method to the contract. Raises AssertionError with a note that says which promise was
    broken, or MethodError, as a run would, where its class or a hook is wrong by itself.

    Args:
        adapter: the kind to try it on; by default its own.
        exact: after each round everybody, server and absent clients too, is to hold
            W0 + Σ p_i (W_i − W0) over what the round's clients ended with.
        expected: entries of the state after a round, by name, from the state before it and the
            updates, all in float64: the method's equation in other words.
        weighted: whether the weights p_i of clients matter; a median has no use for them.
    """
    declared(type(strategy))
    case = Case(
        strategy,
        adapter or strategy.adapter,
        exact=exact,
        expected=expected,
        weighted=weighted,
    )
    for tried in variants(case):
        for promise in PROMISES:
            try:
                promise(tried)
            except Exception as e:
                e.add_note(_told(tried, promise, e))
                raise


def variants(case: Case) -> Iterator[Case]:
    """The case with and without a head, over a lossy wire, and with mixed ranks where the method
    has them."""
    yield case
    yield replace(case, head=False)
    yield replace(case, wire=torch.bfloat16)
    if case.strategy.mixed_ranks:
        yield replace(case, ranks=(2, 4, 3, 1))


def _told(case: Case, promise: Promise, e: Exception) -> str:
    """Which case it was, and which promise, unless a hook failed by itself: then its own message
    says what is wrong, and whichever promise called it first has no part in it."""
    head, wire = "with" if case.head else "without", str(case.wire).removeprefix("torch.")
    ranks = case.ranks if any(case.ranks) else f"its own of adapter.rank = {case.base.rank}"
    where = (
        f"{type(case.strategy).__name__} on {case.kind}, ranks {ranks}, {head} a head, over {wire}"
    )
    if isinstance(e, MethodError):
        return f"{where}: a mistake that ends a run too"
    return f"{where}, was held to: {promise.__doc__}"
