"""One call that holds a method to the contract."""

from collections.abc import Iterator
from dataclasses import replace

from fedlora.strategy import Strategy
from fedlora.testing.promises import PROMISES, Case, Truth


def check_strategy(
    strategy: Strategy,
    adapter: str | None = None,
    *,
    exact: bool = False,
    expected: Truth | None = None,
    weighted: bool = True,
) -> None:
    """Hold a method to the contract. Raises AssertionError, or MethodError where a hook fails,
    with a note that says which promise it was.

    Args:
        adapter: the kind to try it on; by default its own.
        exact: after each round everybody, server and absent clients too, is to hold
            W0 + Σ p_i (W_i − W0) over what the round's clients ended with.
        expected: entries of the state after a round, by name, from the state before it and the
            updates, all in float64: the method's equation in other words.
        weighted: whether the weights p_i of clients matter; a median has no use for them.
    """
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
                head = "with" if tried.head else "without"
                e.add_note(
                    f"{type(strategy).__name__} on {tried.kind}, ranks {tried.ranks}, {head} a "
                    f"head, was held to: {promise.__doc__}"
                )
                raise


def variants(case: Case) -> Iterator[Case]:
    """The case with and without a head, and with mixed ranks where the method has them."""
    yield case
    yield replace(case, head=False)
    if case.strategy.mixed_ranks:
        yield replace(case, ranks=(2, 4, 3, 1))
