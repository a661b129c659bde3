"""The passes through the model that clients ask for, alone or together.

What a client does is a generator that yields what it wants of the model, a `Fit` or a `Rate`, and
is sent what came of it; its value is its reply. So one that is alone and many that share passes
run the same lines.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

from clients import ranks
from clients.asked import Fit, Fitted, Rate, Talk, told
from fedlora import evaluation, stacking, training
from fedlora.adapters.stack import alike
from fedlora.privacy import stacking as private_stacking
from fedlora.privacy import training as private_training
from fedlora.privacy.training import Private
from fedlora.resident import Resident
from fedlora.tasks import Score
from fedlora.training import Trained
from fedlora.wire import Parcel

log = logging.getLogger("fedlora.client")


def conclude(
    resident: Resident, talks: Sequence[Talk], excuse: Callable[[Exception], Parcel]
) -> list[Parcel]:
    """Every client's reply. One whose talk fails has the excuse for its error, the others go on."""
    replies: dict[int, Parcel] = {}
    results: dict[int, Any] = dict.fromkeys(range(len(talks)))
    while results:
        asked: dict[int, Fit | Rate] = {}
        for i, found in results.items():
            talk = talks[i]
            try:
                asked[i] = talk.throw(found) if isinstance(found, Exception) else talk.send(found)
            except StopIteration as end:
                replies[i] = end.value
            except Exception as e:
                replies[i] = excuse(e)
        try:
            answers = _answered(resident, list(asked.values()))
        except Exception as e:  # then nobody has an answer, and each says so
            answers = [e] * len(asked)
        results = dict(zip(asked, answers, strict=True))
    return [replies[i] for i in range(len(talks))]


def _answered(resident: Resident, asked: Sequence[Fit | Rate]) -> list[Any]:
    """What came of each, or the exception that it ended in."""
    found: dict[int, Any] = {}
    most = resident.most  # counted on the model before anybody is loaded into it
    for group in _together(resident, asked):
        requests = [asked[i] for i in group]
        answers = _stacked(resident, requests, most) if len(group) > 1 else None
        for i, request in enumerate(requests):
            if not answers and len(group) > 1 and isinstance(request, Fit) and request.noise:
                request = replace(request, noise=request.noise.afresh())
            found[group[i]] = answers[i] if answers else _tried(resident, request, most)
    return [found[i] for i in range(len(asked))]


def _together(resident: Resident, asked: Sequence[Fit | Rate]) -> list[list[int]]:
    """The requests, by index, that can share passes."""
    if resident.hides or resident.reached.apart:
        return [[i] for i in range(len(asked))]
    if resident.config.privacy.engine == "hooks" and any(isinstance(r, Fit) for r in asked):
        return [[i] for i in range(len(asked))]
    kinds: dict[object, list[int]] = {}
    for i, request in enumerate(asked):
        kinds.setdefault(_kind(resident, request), []).append(i)
    return [
        [kind[i] for i in group]
        for kind in kinds.values()
        for group in alike([asked[i].member.tensors for i in kind])
    ]


def _kind(resident: Resident, request: Fit | Rate) -> object:
    """What is the same for all who share passes: parts, round, and under a schedule that decays
    the steps, since one optimizer moves them."""
    if isinstance(request, Rate):
        return request.split
    settings, member = resident.config.train, request.member
    steps = settings.steps_a_round(len(member.encoded)) if settings.decays else None
    return tuple(sorted(request.parts)), member.turn, steps


def _stacked(
    resident: Resident, requests: Sequence[Fit | Rate], most: int | None
) -> list[Any] | None:
    """The answers to requests that share passes; None, with the reason in the log, where that
    failed."""
    members = [r.member for r in requests]
    task, adapter, config = resident.task, resident.adapter, resident.config
    started = monotonic()
    try:
        if isinstance(requests[0], Rate):
            return [*stacking.evaluate(task, adapter, members, most)]
        noises = [r.noise for r in requests if isinstance(r, Fit) and r.noise]
        parts = requests[0].parts
        if noises:
            found: Any = private_stacking.train(
                task, adapter, members, noises, parts, config.train, config.privacy, most
            )
        else:
            found = stacking.train(task, adapter, members, parts, config.train, most)
    except Exception as e:
        log.warning(
            "%d clients could not share passes, and go one after another: %s", len(members), e
        )
        return None
    seconds = (monotonic() - started) / len(members)
    return [Fitted(tensors, told, seconds) for tensors, told in found]


def _tried(resident: Resident, request: Fit | Rate, most: int | None) -> Fitted | Score | Exception:
    try:
        return alone(resident, request, most)
    except Exception as e:
        return e


def alone(resident: Resident, request: Fit | Rate, most: int | None) -> Fitted | Score:
    member = request.member
    resident.load(member.tensors, member.scale)
    facts = {"do": "pass", **told(request, most)}
    with ranks.all_do(resident.node.ranks, facts, member.tensors):
        return made(resident, request, most)


def made(resident: Resident, request: Fit | Rate, most: int | None) -> Fitted | Score:
    """The passes over a client that is loaded; of several ranks each makes its own."""
    member, config = request.member, resident.config
    task, adapter, shared = resident.task, resident.adapter, resident.node.ranks
    if isinstance(request, Rate):
        return evaluation.evaluate(
            task, adapter.model, member.encoded, most, resident.hides, shared
        )
    started = monotonic()
    settings = config.train
    if request.steps:
        settings = settings.model_copy(update={"steps": request.steps})
    done: Trained | Private
    if request.noise:
        done = private_training.train(
            task,
            adapter,
            request.parts,
            member.encoded,
            settings,
            config.privacy,
            *request.noise,
            most=most,
            turn=member.turn,
            steady=resident.hides,
            ranks=shared,
        )
    else:
        done = training.train(
            task,
            adapter,
            request.parts,
            member.encoded,
            settings,
            member.seed,
            most,
            member.turn,
            shared,
        )
    return Fitted(adapter.read(request.parts), done, monotonic() - started)
