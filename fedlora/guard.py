"""Calls into a method, and what its hooks may take, do and return.

Everything that calls a hook calls it here: a run's server and clients, `fedlora cost`, and the
harness of `fedlora.testing`. So a mistake is the same mistake everywhere, and names its class, the
hook, the tensor and the shapes.
"""

import math
import sys
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fedlora.errors import MethodError, UserError
from fedlora.privacy.central import clipped
from fedlora.settings import nearest
from fedlora.strategy import Client, Round, Scaling, Strategy, Update
from fedlora.tensors import RESIDUAL, Tensors, is_memory, largest, module_of, part_of, select

Changes = dict[str, Tensor | None]
RANK_AXIS = {"A": 0, "B": 1}  # of A (r, n) and B (m, r)


def called(strategy: Strategy, hook: str, *arguments: Any) -> Any:
    """`strategy.hook(*arguments)`; whatever it raises becomes a MethodError that says where, and so
    does what it writes into its arguments or itself. Torch counts writes into a tensor; those past
    the count, through numpy or `.data`, are found by the harness, which compares values."""
    where = _where(strategy, hook)
    given = [(tensors, _writes(tensors)) for tensors in given_to(arguments)]
    itself = _attributes(strategy)
    try:
        result = getattr(strategy, hook)(*arguments)
    except UserError:
        raise
    except ValidationError as e:
        assigned = [str(x["loc"][0]) for x in e.errors() if x["type"] == "frozen_instance"]
        raise _remembers(where, assigned[0]) if assigned else _raised(where, e) from e
    except Exception as e:
        raise _raised(where, e) from e
    for tensors, before in given:
        if tensors.keys() != before.keys():
            odd = ", ".join(sorted(tensors.keys() ^ before.keys()))
            raise wrote(strategy, hook, f"the dictionary that it was given, at {odd}")
        after = _writes(tensors)
        for name, (tensor, writes) in before.items():
            if after[name][0] is not tensor or after[name][1] != writes:
                raise wrote(strategy, hook, name)
    for name, value in _attributes(strategy).items():
        if itself.get(name) is not value:
            raise _remembers(where, name)
    return result


def given_to(arguments: Sequence[Any]) -> list[Tensors]:
    """The dictionaries of tensors among a hook's arguments, those of updates too. What lies on disk
    is none: whoever asks for such a tensor has one of its own."""
    found: list[Tensors] = []
    for given in arguments:
        if isinstance(given, dict):
            found.append(given)
        elif isinstance(given, Update):
            found += [t for t in (given.tensors, given.sent) if isinstance(t, dict)]
        elif isinstance(given, list | tuple):
            found += given_to(given)
    return found


def wrote(strategy: Strategy, hook: str, what: str) -> MethodError:
    """The mistake of a hook that changes what it was given."""
    return MethodError(
        f"{_where(strategy, hook)} wrote into {what}, which is not its own: make a new tensor, as "
        "in t + x for t.add_(x) and t.clone() before t[i] = x, and a new dictionary, {**given, …}"
    )


def checked(strategy: Strategy, hook: str, result: Any) -> Tensors:
    """What a hook returned, in fp32, contiguous. Raises MethodError where it is no dictionary of
    real floating-point tensors by name."""
    where = _where(strategy, hook)
    if not isinstance(result, Mapping):
        raise MethodError(f"{where} returned {type(result).__name__}, not a dictionary of tensors")
    for name, tensor in result.items():
        if not isinstance(name, str):
            raise MethodError(f"{where} returned a tensor under {name!r}, which is no name")
        if not isinstance(tensor, Tensor):
            raise MethodError(f"{where} returned {type(tensor).__name__} for {name}, not a tensor")
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise MethodError(
                f"{where} returned {kind} ({tensor.layout}) for {name}: only dense tensors of real "
                "floating-point numbers travel and are kept; turn it into one with .float()"
            )
    return {name: _plain(tensor) for name, tensor in result.items()}


def changes(strategy: Strategy, hook: str, result: Any, state: Tensors) -> Changes:
    """What `begin` or `aggregate` returned, held against the state: known names, same shapes,
    finite values. Memory and a layer's residual may come and grow, and go, where it is None."""
    removed = [k for k, t in result.items() if t is None] if isinstance(result, Mapping) else []
    if lost := [str(k) for k in removed if not _comes_and_goes(str(k), state)]:
        raise MethodError(
            f"{_where(strategy, hook)} returned None for {', '.join(lost[:4])}: that removes an "
            "entry for good, and only memory and a layer's residual may go; leave out what is to "
            "stay as it is"
        )
    if removed:
        result = {k: t for k, t in result.items() if t is not None}
    kept = finite(strategy, hook, _known(strategy, hook, result, state), state)
    return kept | dict.fromkeys(removed)


def finite(
    strategy: Strategy, hook: str, tensors: Tensors, given: Mapping[str, Tensor] | None = None
) -> Tensors:
    """The tensors of a hook, none of which holds a NaN or an infinity. What it was `given` and
    gives back was looked at before."""
    for name, tensor in tensors.items():
        if given is not None and tensor is given.get(name):
            continue
        if not tensor.is_meta and not math.isfinite(largest(tensor)):
            raise MethodError(
                f"{_where(strategy, hook)} returned {name} with values that are not finite: look "
                "for a division by what may be 0, and for numbers beyond fp32"
            )
    return tensors


def rank(strategy: Strategy, full: int, index: int, client: str, round: Round) -> int:
    """The rank of a client whose node sets none: the method's `rank`, from 1 to `full`."""
    found = called(strategy, "rank", full, index, client, round)
    where = f"{_where(strategy, 'rank')} returned {found!r} for client {client}"
    if type(found) is not int or not 1 <= found <= full:
        raise MethodError(f"{where}, not a whole number from 1 to adapter.rank = {full}")
    if found != full and not strategy.mixed_ranks:
        raise MethodError(
            f"{where}, and adapter.rank is {full}: a method of mixed ranks says so, `mixed_ranks = "
            "True`, cuts what it broadcasts and puts back what is placed"
        )
    return found


def scale(strategy: Strategy, scaling: Scaling, rank: int) -> float:
    """The scale of a client that holds this rank: the method's `scale`, finite and above 0."""
    found = called(strategy, "scale", scaling, rank)
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if not number or not 0 < found <= sys.float_info.max:
        raise MethodError(
            f"{_where(strategy, 'scale')} returned {found!r} for rank {rank}, not a finite number "
            "above 0: an int or a float"
        )
    return float(found)


def view(strategy: Strategy, state: Tensors, client: Client, round: Round) -> Tensors:
    """What a client's adapter is to be: the method's `broadcast`, without the server's memory. A
    (r, n) and B (m, r) have the client's rank, where it sends them."""
    result = called(strategy, "broadcast", state, client, round)
    found = checked(strategy, "broadcast", result)
    if memory := sorted(filter(is_memory, found)):
        raise MethodError(
            f"{_where(strategy, 'broadcast')} sends {', '.join(memory[:4])}, which is the server's "
            "memory and may say to one client what another sent: leave out what `is_memory` names"
        )
    for name, tensor in found.items():
        axis = RANK_AXIS.get(part_of(name))
        if axis is not None and tensor.ndim == 2 and tensor.shape[axis] != client.rank:
            raise MethodError(
                f"{_where(strategy, 'broadcast')} returned {name} in shape {tuple(tensor.shape)} "
                f"for {client.id}, whose rank is {client.rank}"
            )
    return finite(strategy, "broadcast", found, state)


def trains(strategy: Strategy, round: Round, parts: set[str]) -> set[str]:
    """The parts that clients optimise in a round, of those that the adapter has: some at least."""
    result, where = called(strategy, "trains", round), _where(strategy, "trains")
    if not isinstance(result, Set):
        raise MethodError(f"{where} returned {type(result).__name__}, not a set of parts")
    if odd := sorted(map(str, result - strategy.trained)):
        raise MethodError(
            f"{where} returned {', '.join(odd)}, which `trained` = {sorted(strategy.trained)} of "
            "the class does not name"
        )
    if not result & parts:
        raise MethodError(f"{where} leaves nothing to train in round {round.number}")
    return set(result) & parts


def sends(strategy: Strategy, round: Round, parts: set[str]) -> set[str]:
    """The parts that may leave a client in a round: those that it trains and shares."""
    return strategy.shared & trains(strategy, round, parts)


def uploaded(
    strategy: Strategy, tensors: Tensors, client: Client, round: Round, parts: set[str]
) -> Tensors:
    """What a client sends of its `tensors`: its `upload`, which sees only the parts that may leave,
    so that what is declared to stay does. It may send each of these as a whole, or not at all.

    Args:
        parts: what this adapter can train.
    """
    own = select(tensors, sends(strategy, round, parts))
    result = checked(strategy, "upload", called(strategy, "upload", {**own}, client, round))
    where = _where(strategy, "upload")
    for name, tensor in result.items():
        _fits(where, name, tensor, own, "the client", "a client does not send in this round")
    return result


def placed(
    strategy: Strategy,
    update: Update,
    state: Tensors,
    round: Round,
    start: Tensors | None = None,
    clip: float | None = None,
) -> Tensors:
    """An update as it is folded into the mean: the method's `place`.

    Args:
        start, clip: under central privacy, the state's tensors that the noise covers, and C. What
            the client changed of them has the L2 norm C at most, all of it together, whatever
            `place` makes of it; what it says nothing of counts as unchanged.
    """
    result = called(strategy, "place", update, state, round)
    found = _known(strategy, "place", result, state)
    if start is None or clip is None:
        came = update.tensors if isinstance(update.tensors, dict) else None
        return finite(strategy, "place", found, came)
    if odd := sorted(found.keys() - start.keys()):
        raise MethodError(
            f"{_where(strategy, 'place')} returned {', '.join(odd[:4])}, which clients do not send "
            "in this round: central noise covers what they send and nothing else"
        )
    return clipped({**start, **found}, start, clip)


def _known(strategy: Strategy, hook: str, result: Any, state: Tensors) -> Tensors:
    """What a hook returned, in names and shapes of the state, memory and residuals aside."""
    found = checked(strategy, hook, result)
    for name, tensor in found.items():
        if not _comes_and_goes(name, state):
            where = _where(strategy, hook)
            _fits(where, name, tensor, state, "the state", "the state does not have")
    return found


def _comes_and_goes(name: str, state: Tensors) -> bool:
    """Whether an entry is memory, or the residual of a layer in the state."""
    grows = part_of(name) in RESIDUAL
    return is_memory(name) or (grows and any(module_of(k) == module_of(name) for k in state))


def _fits(where: str, name: str, tensor: Tensor, known: Tensors, whose: str, missing: str) -> None:
    if name not in known:
        raise MethodError(f"{where} returned '{name}', which {missing}{nearest(name, known)}")
    if tensor.shape != known[name].shape:
        raise MethodError(
            f"{where} returned {name} in shape {tuple(tensor.shape)}, where {whose} has "
            f"{tuple(known[name].shape)}"
        )


def _where(strategy: Strategy, hook: str) -> str:
    return f"{type(strategy).__name__}.{hook}"


def _raised(where: str, e: Exception) -> MethodError:
    return MethodError(f"{where} raised {type(e).__name__}: {e}")


def _remembers(where: str, name: str) -> MethodError:
    return MethodError(
        f"{where} assigned to self.{name}: a method is frozen, and what it kept in itself would be "
        f"lost with the process. Let aggregate return it as 'server/{name.strip('_')}', a tensor, "
        "and read it from the state"
    )


def _writes(tensors: Tensors) -> dict[str, tuple[Tensor, int]]:
    """The tensor of each name, and how often it was written into; inference tensors do not count
    that."""
    return {k: (t, -1 if t.is_inference() else t._version) for k, t in tensors.items()}


def _attributes(strategy: Strategy) -> dict[str, Any]:
    """What a method has of its own but cached properties, which are functions of its settings."""
    own = {**vars(strategy), **(strategy.__pydantic_private__ or {})}
    kind = type(strategy)
    return {k: x for k, x in own.items() if not isinstance(getattr(kind, k, None), cached_property)}


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.detach() if tensor.requires_grad else tensor).float().contiguous()
