"""Only what a client lacks is sent, and it ends with the server's view to the bit."""

from unittest.mock import Mock, patch

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


@given(draw.integers(0, 9), draw.integers(0, 9), draw.sampled_from(["layer.0.P", "layer.0.Q"]))
def test_what_grows_is_read_from_the_seam_on(before: int, after: int, name: str) -> None:
    """Blocks before it are known, and the digest is that of one who reads the whole; a client's
    own patched view has it too."""
    with patch.object(views, "BLOCK", 3):
        short, long = tensor(name, 0, before), tensor(name, 0, max(before, after))
        known = views.blocks(name, short)[: before // 3]
        with patch.object(views, "_hashed", Mock(side_effect=views._hashed)) as hashed:
            found = views.blocks(name, long, known)
        assert found == views.blocks(name, long)
        axis = views.GROWS_ALONG[name[-1]]
        read = sum(call.args[0].shape[axis] for call in hashed.call_args_list)
        assert read == long.shape[axis] - 3 * (before // 3)
        held, new = views.View.of({name: short}), views.View.of({name: long})
        way = views.difference(
            new.tensors, views.manifest(new.tensors), views.manifest(held.tensors)
        )
        assert held.patched(way).fingerprint == new.fingerprint
        assert bool(way.tails) == (0 < short.shape[axis] < long.shape[axis])


def test_a_matrix_is_another_in_other_blocks() -> None:
    """Values, their order and the shape tell; a tensor of other dimensions is read whole."""
    with patch.object(views, "BLOCK", 2):
        one = {"x.P": torch.arange(12.0).view(3, 4)}
        others = [
            {"x.P": one["x.P"].flip(1)},
            {"x.P": one["x.P"].view(2, 6)},
            {"x.P": one["x.P"].flatten()},
            {"x.P": one["x.P"][:, :3]},
            {"x.Q": one["x.P"]},
        ]
        prints = [views.View.of(x).fingerprint for x in (one, *others)]
    assert len(set(prints)) == 6
