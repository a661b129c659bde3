"""Random streams: the same wherever they are asked for, and nobody else's."""

import torch

from fedlora.streams import derive, forked, stream


def draws(*path):
    return torch.randn(8, generator=stream(*path))


def test_a_stream_is_its_seed_and_path():
    """The same draws for the same path, others for any other, also where texts run together."""
    paths = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, "a1"), (0, "a", "1", "")]
    seen = [draws(*p) for p in paths]
    for i, one in enumerate(seen):
        assert torch.equal(one, draws(*paths[i]))
        assert not any(torch.equal(one, other) for other in seen[i + 1 :])
    assert len({derive(0, i) for i in range(1000)}) == 1000


def test_seeds_are_the_same_on_every_machine():
    """Pinned: a run that is resumed elsewhere, or by a later version, draws the same."""
    assert derive(0, "sample", 1) == 6874544025897329258


def test_a_fork_leaves_the_global_generator(global_rng_untouched):
    """Also when the block raises; inside, it draws what its path says."""
    with forked(3, "x"):
        one = torch.randn(4)
    try:
        with forked(3, "x"):
            two = torch.randn(4)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(one, two)
    assert not torch.equal(one, torch.randn(4, generator=stream(3, "y")))
