"""What is made once of a state for all clients who are sent it."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from torch import Tensor

from fedlora.strategy import Round
from fedlora.tensors import Tensors, part_of, place
from fedlora.views import Blocks, Manifest, blocks, digest, fingerprint
from fedlora.wire import Arrays

Places = dict[str, tuple[object, ...]]
Assigned = Callable[[str, Tensor], Tensor]  # a tensor by its name, as a client will hold it


class Recalled(Mapping[str, Tensor]):
    """A view that a client was sent, as it arrived there: made again when somebody asks, and each
    tensor's trip in the wire's format whenever it is asked for."""

    def __init__(self, asked: Callable[[], Tensors], assigned: Assigned) -> None:
        self._ask, self._assigned = asked, assigned

    @cached_property
    def _view(self) -> Tensors:
        return self._ask()

    def __getitem__(self, name: str) -> Tensor:
        return self._assigned(name, self._view[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._view)

    def __len__(self) -> int:
        return len(self._view)

    def __or__(self, other: Mapping[str, Tensor]) -> Tensors:
        """As a dictionary has it."""
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Tensor]) -> Tensors:
        return {**other, **self}


class Shared:
    """A state's tensors as bytes on the wire, and the digests of what clients will hold of them.
    Of tensors that a method makes for one client alone nothing is kept.

    Args:
        trained: the parts that cross in the run's format, all others in fp32.
    """

    def __init__(self, trained: set[str]) -> None:
        self._trained = trained
        self._read: dict[tuple[object, ...], tuple[Tensor, Blocks]] = {}
        self._latest: tuple[Places | None, Manifest, str] = (None, {}, "")

    def begin(self, state: Tensors, round: Round) -> None:
        """For a phase: what is known of tensors that the state still has is used again."""
        self._round, self._places = round, {place(t) for t in state.values()}
        self._read = {k: x for k, x in self._read.items() if k[1:] in self._places}
        self._latest = (None, {}, "")
        self.arrays = Arrays(round.wire, self._trained, state.values())

    def end(self) -> None:
        """All have been sent theirs: the bytes are kept no longer."""
        self.arrays = Arrays(self._round.wire, self._trained)

    def has(self, view: Tensors) -> bool:
        """Whether a view is made of the state's own tensors."""
        return all(place(t) in self._places for t in view.values())

    def assigned(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as the client will hold it."""
        return self._round.assigned(tensor) if part_of(name) in self._trained else tensor

    def blocks(self, name: str, tensor: Tensor) -> Blocks:
        """The digests of a tensor as the client will hold it."""
        key = part_of(name), *place(tensor)
        if key not in self._read:
            found = blocks(name, self.assigned(name, tensor))
            if key[1:] not in self._places:
                return found
            self._read[key] = tensor, found
        return self._read[key][1]

    def manifest(self, view: Tensors) -> tuple[Manifest, str]:
        """The manifest of a view as the client will hold it, and its fingerprint: one object for
        clients in a row who are to hold the same."""
        same = {name: place(t) for name, t in view.items()}
        before, found, print = self._latest
        if same != before:
            found = {k: (digest(self.blocks(k, t)), list(t.shape)) for k, t in view.items()}
            print = fingerprint(found)
            self._latest = (same if self.has(view) else None, found, print)
        return found, print
