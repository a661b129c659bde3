"""Files of tensors: the library's own bytes, whole or not at all, and no second copy."""

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedlora.streams import stream
from fedlora.tensorfiles import DTYPES, TensorFile, save, saved
from fedlora.tensors import Tensors
from tests.federation import same

shapes = st.lists(st.integers(0, 5), max_size=3)
names = st.text('aäb. "\\\n', min_size=1, max_size=6)
formats = st.sampled_from(sorted(DTYPES))


def made(spec: Mapping[str, tuple[list[int], str]]) -> Tensors:
    return {
        name: (100 * torch.rand(shape, generator=stream(0, name))).to(DTYPES[format])
        for name, (shape, format) in spec.items()
    }


@settings(max_examples=40)
@given(spec=st.dictionaries(names, st.tuples(shapes, formats), max_size=6), about=st.booleans())
def test_the_bytes_are_the_librarys(
    tmp_path_factory: pytest.TempPathFactory, spec: dict[str, tuple[list[int], str]], about: bool
) -> None:
    """Of any names, shapes and formats, and of metadata; and both read what was written."""
    folder, tensors = tmp_path_factory.mktemp("files"), made(spec)
    metadata = {"client": "ä"} if about else None
    save(tensors, folder / "ours", metadata)
    save_file(tensors, folder / "theirs", metadata)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert same(load_file(folder / "ours"), tensors)
    assert same(dict(TensorFile(folder / "ours")), tensors)
    assert saved(folder / "ours")[1] == (metadata or {})


def test_tensors_that_lie_in_no_one_piece(tmp_path: Path) -> None:
    """Transposed, sliced, expanded, of one memory, or asked for gradients: their values."""
    whole = torch.arange(24.0).view(4, 6)
    tensors = {
        "t": whole.T,
        "slice": whole[1:3, ::2],
        "row": whole[2],
        "same": torch.ones(1).expand(3, 3),
        "leaf": whole.clone().requires_grad_(),
    }
    save(tensors, tmp_path / "x")
    found = dict(TensorFile(tmp_path / "x"))
    assert same(found, {k: t.detach() for k, t in tensors.items()})


def test_the_bytes_are_told_as_they_are_written(tmp_path: Path) -> None:
    """All of them, in order, so that no file has to be read again."""
    pieces: list[bytes] = []
    save(made({"a": ([3, 4], "BF16")}), tmp_path / "x", told=lambda p: pieces.append(bytes(p)))
    assert b"".join(pieces) == (tmp_path / "x").read_bytes()


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """As on a full disk: what was there before stays as it was."""
    save({"x.A": torch.ones(2)}, path := tmp_path / "own.safetensors")

    def full(_: memoryview) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        save({"x.A": torch.zeros(2)}, path, told=full)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_file(path)["x.A"], torch.ones(2))


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """Into memory of its own, which numpy's allocations show: never more than what is held, and a
    write into one is seen by nobody else."""
    size = 4 * 100_000
    save({name: torch.ones(100_000) for name in "abcd"}, tmp_path / "x")
    tracemalloc.start()
    try:
        file = TensorFile(tmp_path / "x")
        for name in file:
            file[name].add_(1)
        most = tracemalloc.get_traced_memory()[1]
        everything = dict(file)
        both = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert most < 1.2 * size and both > 4 * size
    assert all(torch.equal(t, torch.ones(100_000)) for t in everything.values())


def test_it_is_used_as_a_dictionary(tmp_path: Path) -> None:
    """As methods use an update's tensors: in the order of names, joined, and not written to."""
    tensors = {"b": torch.zeros(2), "a": torch.ones(3)}
    save(tensors, tmp_path / "x")
    file, more = TensorFile(tmp_path / "x"), {"a": torch.zeros(1)}
    assert list(file) == ["a", "b"] and len(file) == 2 and "c" not in file
    for found, truth in [
        ({**file}, tensors),
        (file | more, tensors | more),
        (more | file, more | tensors),
    ]:
        assert isinstance(found, dict) and same(found, truth)
    with pytest.raises(TypeError, match="item assignment"):
        file["a"] = torch.zeros(3)  # type: ignore[index]
    with pytest.raises(KeyError):
        file["c"]


@pytest.mark.parametrize("wrong", [b"", b"\x08\0\0\0\0\0\0\0nonsense"])
def test_what_is_no_such_file_is_said(tmp_path: Path, wrong: bytes) -> None:
    """When it is opened, not when a tensor is asked for."""
    (tmp_path / "x").write_bytes(wrong)
    with pytest.raises(ValueError):
        TensorFile(tmp_path / "x")
