"""Which client owns which row. Rows are numbers into the training pool, never copies.

The rules that draw at random are those of flwr-datasets, each with its own generator.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from datasets import Dataset

from fedlora.config import Data
from fedlora.data.columns import in_order
from fedlora.errors import UserError
from fedlora.streams import derive, stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import DirichletPartitioner, ShardPartitioner

Rows = list[int]


def shuffled(rows: Sequence[int], generator: torch.Generator) -> Rows:
    """The rows in random order."""
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def evenly(
    groups: Sequence[Sequence[int]], count: int | None, generator: torch.Generator
) -> set[int]:
    """`count` random rows (None: all), one of each group in turn."""
    turns = zip_longest(*(shuffled(group, generator) for group in groups))
    rows = [row for turn in turns for row in turn if row is not None]
    return set(rows[:count])


def grouped(rows: Sequence[int], owners: Sequence[str]) -> dict[str, Rows]:
    """{owner: rows}, owners in order, integers as numbers; what flwr-datasets'
    NaturalIdPartitioner does, without the seconds that importing it takes, since this is every
    run's default."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(owners[row], []).append(row)
    return {owner: groups[owner] for owner in in_order(groups)}


def deal(data: Data, labels: Sequence[int], rows: Sequence[int], seed: int) -> dict[str, Rows]:
    """{client: rows} by the rule data.partition: every row goes to exactly one client, and no
    client goes without. `labels[row]` is the label of a row.

    Raises:
        UserError: there are too few rows for so many clients.
    """
    if data.clients > len(rows):
        raise UserError(
            f"{data.clients} clients cannot share {len(rows)} training rows. Lower data.clients."
        )
    order = shuffled(rows, stream(seed, "data", "partition"))
    if data.partition == "iid":
        parts = evenly_cut(order, data.clients)
    else:
        parts = drawn(data, order, [labels[row] for row in order], seed)
    width = max(2, len(str(data.clients - 1)))
    return {f"client-{i:0{width}}": part for i, part in enumerate(parts)}


def evenly_cut(rows: Rows, count: int) -> list[Rows]:
    """The rows in order in so many pieces of like size, larger ones first; what flwr-datasets'
    IidPartitioner does, which takes milliseconds a client, and seconds to import."""
    size, larger = divmod(len(rows), count)
    ends = [size * i + min(i, larger) for i in range(count + 1)]
    return [rows[ends[i] : ends[i + 1]] for i in range(count)]


def drawn(data: Data, rows: Rows, labels: Sequence[int], seed: int) -> list[Rows]:
    """Each client's rows by a rule of flwr-datasets that draws. Raises UserError where a client
    goes without."""
    partitioner = rule(data, len(rows), derive(seed, "data", "partition"))
    partitioner.dataset = Dataset.from_dict({"row": rows, "label": labels})
    try:
        with warnings.catch_warnings(action="ignore"):  # one for each draw that is drawn again
            _ = partitioner.num_partitions  # draws
    except ValueError as error:
        or_else = " or raise data.concentration" if data.partition == "dirichlet" else ""
        raise UserError(
            f"data.partition = {data.partition!r} leaves some of {data.clients} clients without "
            f"rows ({len(rows)} in all). Lower data.clients{or_else}."
        ) from error
    # load_partition would make a data set for each client, at milliseconds apiece.
    own: Mapping[int, Rows] = partitioner._partition_id_to_indices
    order = partitioner.dataset["row"][:]  # which the partitioner may have sorted
    return [[order[i] for i in own[client]] for client in range(data.clients)]


def rule(data: Data, rows: int, seed: int) -> "DirichletPartitioner | ShardPartitioner":
    """The partitioner of flwr-datasets that the configuration asks for."""
    from flwr_datasets import partitioner as rules  # here, since it imports much for plotting

    if data.partition == "dirichlet":  # Dir(concentration) over clients, label by label
        return rules.DirichletPartitioner(
            data.clients, "label", data.concentration, min_partition_size=1, seed=seed
        )
    # McMahan et al., arXiv:1602.05629, section 3. Shards are sized upwards, the last one smaller:
    # told a number of shards, it drops what is left over.
    size = -(-rows // (data.clients * data.shards))
    return rules.ShardPartitioner(
        data.clients, "label", shard_size=size, keep_incomplete_shard=True, seed=seed
    )


def hold_out(
    clients: Mapping[str, Rows], data: Data, seed: int
) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """({client: training rows}, {client: held-out rows}), both in the pool's order: of a client's
    rows at most data.rows, of these the share data.holdout.

    Raises:
        UserError: a client is left without a training row.
    """
    train, heldout = {}, {}
    for client, rows in clients.items():
        chosen = shuffled(rows, stream(seed, "data", "client", client))[: data.rows]
        cut = round(data.holdout * len(chosen))
        if cut == len(chosen):
            raise UserError(
                f"client {client} has {len(chosen)} rows, and data.holdout = {data.holdout} leaves "
                f"none of them to train on. Lower data.holdout or give the client more rows."
            )
        heldout[client], train[client] = sorted(chosen[:cut]), sorted(chosen[cut:])
    return train, heldout
