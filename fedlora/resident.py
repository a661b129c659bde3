"""The base model, its tokenizer and the rows, loaded once and kept for the life of the process."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from fedlora import data, profile, tasks
from fedlora.adapters import Adapter
from fedlora.adapters.recompute import recompute
from fedlora.config import Config
from fedlora.data.owned import own
from fedlora.device import prepare, release, settled
from fedlora.errors import MethodError, UserError
from fedlora.footprint import bound
from fedlora.models import digest, tokenizer_digest
from fedlora.parallel import ALONE, Ranks
from fedlora.privacy.engines import unsupported
from fedlora.reached import Reached, reached
from fedlora.strategy import Strategy
from fedlora.tasks import table, usable
from fedlora.tensors import Tensors, select

log = logging.getLogger("fedlora.client")


@dataclass(frozen=True)
class Node:
    """What a node has of its own: rows (`data` as `own` takes it, "": those that the configuration
    names) of one client, where its model is, and the rank of this process among those that train
    it together."""

    data: str = ""
    client: str = ""
    device: str | None = None  # by default the simulation's
    ranks: Ranks = ALONE


class Resident:
    """One configuration's model and data; every client of this process is served from it."""

    def __init__(
        self,
        config: Config,
        strategy: Strategy,
        node: Node | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            labels: of the rows, where they are known without them.
        """
        self.node = node or Node()
        self._labels = labels
        self.config = settled(config, self.node.device)
        prepare(self.config)
        self.strategy = strategy
        self.encoded = lru_cache(maxsize=512)(self._encoded)
        self._folder: Path | None = None
        # Inside it the other ranks of `node.ranks` find this property too, by the model.
        self.together: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()

    @property
    def hides(self) -> bool:
        """Whether these are an owner's rows in a private run, where every row is used."""
        return bool(self.node.data) and self.config.privacy.on

    @cached_property
    @profile.timed("load")
    def federation(self) -> data.Federation:
        seed, kind = self.config.run.seed, tasks.load(self.config.model.task).kind
        if self.node.data:
            rows, client = self.node.data, self.node.client
            return own(rows, client, self.config.data, seed, kind, self.hides)
        federation = data.load(self.config.data, seed, kind)
        return data.pool(federation) if self.config.data.pooled else federation

    @property
    def labels(self) -> list[str]:
        return list(self.federation.labels if self._labels is None else self._labels)

    @cached_property
    @profile.timed("load")
    def task(self) -> tasks.Task:
        made = tasks.load(self.config.model.task)(self.config, self.labels)
        made.steady = self.hides
        return made

    @cached_property
    @profile.timed("load")
    def adapter(self) -> Adapter:
        with self.together("adapter"):
            with self.node.ranks.by_turns():
                adapter = self._made()
            if self.node.data:
                usable.rehearse(self.task, adapter.model)
            self._reached = reached(self.task, adapter, self.config.privacy.local)
            return adapter

    @cached_property
    def verified(self) -> bool:
        """That rounds can come to something. Raises UserError where the model does not read the
        longest row, or where there is nothing to learn; of rows that hide that is not said."""
        if not self.node.data and not self.node.ranks.sharded:
            usable.rehearse(self.task, self.adapter.model)
        trained = sorted(row for rows in self.federation.trained.values() for row in rows)
        if trained and not self.hides:
            usable.teach(self.task, self.table.select(np.searchsorted(self._owned, trained)))
        return True

    @property
    def reached(self) -> Reached:
        """Which layers passes come to, and whether clients can share these."""
        _ = self.adapter
        return self._reached

    def _made(self) -> Adapter:
        seed = self.config.run.seed
        model = self.task.model(seed)
        adapter = Adapter(model, self.config.adapter, seed)
        adapter.parts -= self.config.train.freezes
        if self.config.model.gradient_checkpointing:
            recompute(model)
        if not self.strategy.trained & (adapter.parts - {"head"}):
            raise UserError(
                f"{type(self.strategy).__name__} trains {sorted(self.strategy.trained)}, of which "
                f"adapter.kind = {self.config.adapter.kind} has none: choose another kind"
            )
        if self.config.privacy.engine == "hooks" and (why := unsupported(adapter)):
            raise UserError(f"privacy.engine = hooks: {why}. Set privacy.engine = stacked")
        self._place(adapter)
        return adapter

    def _place(self, adapter: Adapter) -> None:
        """Onto this process's device once all is drawn, so from the same numbers."""
        device, ranks = self.config.simulation.device, self.node.ranks
        try:
            if ranks.sharded:
                from fedlora.adapters.sharded import shard  # takes a while to import

                shard(adapter, device, ranks.size)
            adapter.model.to(device)
        except (AssertionError, RuntimeError) as e:
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise UserError(f"device = {device} cannot be used: {reason}") from None

    def rest(self) -> None:
        """The model goes to the CPU, so that the device's memory is for the processes that
        train."""
        self.adapter.model.to("cpu")
        release(self.config.simulation.device)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, a model that rests is on the device."""
        device, model = self.config.simulation.device, self.adapter.model
        if model.device.type == torch.device(device).type:
            yield
            return
        model.to(device)
        try:
            yield
        finally:
            self.rest()

    @cached_property
    def most(self) -> int | None:
        """Padded tokens that one pass may have, see `bound`; None: any number, for rows that hide,
        whose passes are of one size, for a base of which this process has a share, and where there
        are no rows."""
        clients = self.federation.clients
        if self.hides or self.node.ranks.sharded:
            return None
        rows = self.encoded(clients[0], "train") if clients else self.encoded("", "test")
        return self.bound(rows) if len(rows) else None

    def bound(self, rows: Any) -> int | None:
        """Padded tokens of such rows that one pass may have: what half of a worker's memory has
        room for, where other clients' adapters have the rest. Without `simulation.memory`, as on a
        node, it is of what the device has free now, rounded down to a power of two so that a little
        more or less is the same. None where the model cannot be counted. To be asked before an
        adapter is loaded, which does not outlast it."""
        memory, private = self.config.simulation.memory, self.config.privacy.local
        return bound(self.task, self.adapter, rows, memory, private, not self.reached.apart)

    @profile.timed("load")
    def load(self, view: Tensors, scale: float) -> None:
        """A whole adapter: the view, and where it says nothing what the adapter began with, so
        that nothing stays of whoever was loaded before. Raises MethodError where it cannot be."""
        try:
            self.adapter.load({**self.adapter.initial(), **view}, scale)
        except UserError as e:
            where = f"{type(self.strategy).__name__}.broadcast"
            raise MethodError(f"{where} gave what the adapter cannot hold: {e}") from None

    @cached_property
    @profile.timed("load")
    def identity(self) -> dict[str, Any]:
        """What every node must agree on: labels, the base's weights and their format here, the
        tokenizer."""
        model = self.config.model
        trained = select(self.adapter.initial(), self.adapter.parts & {"head"})
        head = [name.removeprefix("head.") for name in trained]
        return {
            "labels": self.labels,
            "base": digest(self.task.model(self.config.run.seed, stored=True), skip=head),
            "format": model.dtype + (f", {model.quantize}" if model.quantize else ""),
            "tokenizer": tokenizer_digest(self.task.tokenizer),
        }

    @profile.timed("tokenise")
    def share(self, folder: Path) -> None:
        """Have rows, as tokens, in files of this folder, which processes that do so too share.
        For a simulation: nobody's rows are to be on disk in another form."""
        self._folder = folder
        self.table = self._mapped(self._pool, lambda: self.table)
        self.encoded.cache_clear()

    def _mapped(self, rows: Dataset, make: Callable[[], Any]) -> Any:
        """Rows as tokens, from the file where they are shared."""
        if self._folder is None or not len(rows):
            return make()
        return table.mapped(self._folder, table.key(self.task, rows), make)

    @profile.timed("tokenise")
    def _encoded(self, client: str, split: str) -> Any:
        """Tokenised rows: a client's 'train' or 'heldout', the server's 'test' or 'public'."""
        if split in ("test", "public"):
            rows = getattr(self.federation, split)
            return self._mapped(rows, lambda: self.task.encode(rows))
        owned = self.federation.trained if split == "train" else self.federation.held
        mine = self.table.select(np.searchsorted(self._owned, owned[client]))
        packs = split == "train" and self.config.data.packing
        return self.task.packed(mine) if packs else mine  # type: ignore[attr-defined]

    @cached_property
    def table(self) -> Any:
        """Every row that a client owns, tokenised."""
        return self._tried[0] if self.hides else self.task.encode(self._pool)

    @property
    def faults(self) -> dict[int, str]:
        """Of rows that hide: why some, by number in the pool from 0, are blank."""
        return self._tried[1] if self.hides else {}

    @cached_property
    def _tried(self) -> tuple[Any, dict[int, str]]:
        words: Any = self.adapter.model.get_input_embeddings()
        table, faults = usable.encode(self.task, self._pool, words.num_embeddings)
        if faults:
            log.warning(
                "%d of %d rows cannot be used in this run: they count, with a gradient of zero",
                len(faults),
                len(table),
            )
        return table, faults

    @property
    def _pool(self) -> Dataset:
        return self.federation.rows.select(self._owned)

    @cached_property
    def _owned(self) -> NDArray[np.int64]:
        """The rows that clients own, in the pool's order, which is that of the table."""
        owned = [*self.federation.trained.values(), *self.federation.held.values()]
        return np.sort(np.asarray([row for rows in owned for row in rows], np.int64))

    def truncation(self) -> str:
        """What data.max_length costs the rows of this process, in words; "" where none is cut."""
        splits = [("", "test"), ("", "public")] if not self.node.data else []
        tables = [self.table, *(self.encoded(*split) for split in splits)]
        return usable.cuts(self.task, tables, self.config.data.max_length)

    @property
    def notes(self) -> list[str]:
        """What of rows and model looks odd and is no error, in words."""
        missed = self.reached.told()  # first: the task knows more once the model is made
        rows = [self.truncation(), usable.unknown(self.task, self.table)]
        return [*filter(None, [missed, *self.federation.notes, *self.task.notes, *rows])]

    def division(self, client: str) -> str:
        """SHA-256 of a client's rows and of which it trains on, without their labels: which of
        those a run knows, and whether any row has them, is nothing that may be told."""
        owned = [getattr(self.federation, split)[client] for split in ("trained", "held")]
        rows = self.federation.rows.select([*owned[0], *owned[1]]).remove_columns("label")[:]
        return hashlib.sha256(json.dumps([owned, rows], sort_keys=True).encode()).hexdigest()
