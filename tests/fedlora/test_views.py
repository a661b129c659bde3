"""Only what a client lacks is sent, and it ends with the server's view to the bit."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as draw

from fedlora import views
from fedlora.streams import stream
from fedlora.tensors import Tensors
from tests.federation import same

FIXED = ("layer.0.A", "layer.0.B", "head.bias", "vera.U")


def tensor(name: str, version: int, columns: int) -> torch.Tensor:
    """P and Q grow along columns and rows without changing what they begin with; others change
    with their version."""
    if name.endswith(".P"):
        return torch.randn(9, 5, generator=stream(0, name, version)).T[:, :columns].contiguous()
    if name.endswith(".Q"):
        return torch.randn(9, 4, generator=stream(0, name, version))[:columns].contiguous()
    return torch.randn(3, 4, generator=stream(0, name, version))


def view(entries: dict[str, tuple[int, int]]) -> Tensors:
    return {name: tensor(name, *entry) for name, entry in entries.items()}


entries = draw.dictionaries(
    draw.sampled_from([*FIXED, "layer.0.P", "layer.0.Q"]),
    draw.tuples(draw.integers(0, 1), draw.integers(1, 9)),
)


@given(entries, entries)
def test_a_patch_leads_from_any_view_to_any_other(before, after):
    """The patched view is the new one to the bit, and no tensor that is held is sent again."""
    held, new = view(before), view(after)
    manifests = views.manifest(new), views.manifest(held)
    patch = views.difference(new, *manifests)
    assert same(views.patched(held, patch), new)
    assert views.fingerprint(views.manifest(views.patched(held, patch))) == views.fingerprint(
        manifests[0]
    )
    for name, sent in patch.tensors.items():
        known = held.get(name)
        assert known is None or not (known.shape == sent.shape and torch.equal(known, sent))
        same_start = name in before and name[-1] in "PQ" and before[name][0] == after[name][0]
        if same_start and before[name][1] < after[name][1]:
            assert name in patch.tails
            axis = 1 if name.endswith("P") else 0
            assert sent.shape[axis] == after[name][1] - before[name][1]


def test_factors_that_shrank_or_changed_are_sent_whole():
    """Recompressed factors have another beginning, whatever their size."""
    held = view({"x.P": (0, 4)})
    for new in ({"x.P": (0, 3)}, {"x.P": (1, 6)}, {"x.P": (1, 4)}):
        patch = views.difference(view(new), views.manifest(view(new)), views.manifest(held))
        assert patch.tails == [] and same(patch.tensors, view(new))


def test_only_p_and_q_have_tails():
    """A larger A with the same first rows is another A."""
    new, held = {"x.A": torch.ones(4, 3)}, {"x.A": torch.ones(2, 3)}
    patch = views.difference(new, views.manifest(new), views.manifest(held))
    assert patch.tails == [] and same(patch.tensors, new)


def test_what_is_not_held_cannot_be_followed():
    """The client then says that it lost it; of whole tensors the fingerprint tells."""
    with pytest.raises(KeyError):
        views.patched({}, views.Patch({"x.P": torch.ones(2, 1)}, tails=["x.P"]))


@pytest.mark.parametrize(
    "other",
    [
        {"x.A": torch.ones(2, 3) + torch.eye(2, 3) * 1e-7},
        {"x.A": torch.ones(3, 2)},
        {"y.A": torch.ones(2, 3)},
        {},
    ],
)
def test_a_fingerprint_tells_views_apart(other):
    """By value, shape and name; not by the order of names or of memory."""
    one = views.fingerprint(views.manifest({"x.A": torch.ones(2, 3)}))
    assert views.fingerprint(views.manifest(other)) != one


def test_a_fingerprint_does_not_depend_on_order():
    """Neither on that of the names nor on that of the memory."""
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2)
    transposed = a.T.contiguous().T
    assert not transposed.is_contiguous()
    one = views.fingerprint(views.manifest({"a": a, "b": b}))
    assert views.fingerprint(views.manifest({"b": b, "a": transposed})) == one


def test_digests_are_those_of_the_values() -> None:
    """Known ones are given again, and not where values were written over, nor where memory was
    freed and holds another tensor."""
    known = views.Digests()
    one = torch.arange(6.0).view(2, 3)
    assert known(one) == known(one.detach()) == views.digest(one)
    assert known(one.T) == views.digest(one.T) != views.digest(one)
    one.add_(1)
    assert known(one) == views.digest(one)
    held = weakref.ref(gone := torch.ones(5))
    known(gone)
    del gone
    assert held() is not None  # so that no other tensor gets its memory
    with torch.inference_mode():
        free = torch.zeros(3)
        assert known(free) == views.digest(free)
        assert known(free.add_(1)) == views.digest(free)
