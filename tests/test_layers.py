"""The rooms of the house: who may import whom, and what nobody does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "fedlora": set(),
    "strategies": {"fedlora"},
    "clients": {"strategies", "fedlora"},
    "server": {"strategies", "fedlora"},
    "simulations": {"server", "clients", "strategies", "fedlora"},
}
KNOWS_NO = {"flwr", "flwr_datasets", "transformers", "peft", "opacus", "datasets"}
UNPICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LINES = 300

PACKAGES = sorted(p for room in BELOW for p in (ROOT / room).rglob("*.py"))
FILES = [*PACKAGES, *sorted((ROOT / "tests").rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all absolute imports, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def layer_faults(path: str, source: str) -> list[str]:
    """Imports of a file (path from the root) that its room forbids."""
    room = path.split("/")[0]
    forbidden = BELOW.keys() - BELOW[room] - {room}
    if path.startswith("fedlora/cli/"):
        forbidden = set()  # the one place that looks up
    if room == "fedlora" and path != "fedlora/wire.py":
        forbidden |= {"flwr"}
    if room == "strategies":
        forbidden |= KNOWS_NO
    return [f"{path} imports {name}" for name in imported(ast.parse(source)) if name in forbidden]


def trust_faults(path: str, source: str) -> list[str]:
    """Places that would run what a file or a peer says: unpickling, torch.load, remote code."""
    tree = ast.parse(source)
    faults = [f"imports {name}" for name in imported(tree) if name in UNPICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"torch.load", "torch.save"}:
                faults.append(f"calls {called}")
            faults += [
                f"passes {word.arg}"
                for word in node.keywords
                if word.arg in {"trust_remote_code", "allow_pickle"}
                and ast.unparse(word.value) != "False"
            ]
    return [f"{path} {fault}" for fault in faults]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PACKAGES, ids=named)
def test_imports_point_down_only(path: Path) -> None:
    """simulations -> server, clients -> strategies -> fedlora; Flower behind fedlora/wire.py;
    a method knows tensors, and neither models nor Flower."""
    assert not layer_faults(named(path), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PACKAGES, ids=named)
def test_nothing_is_unpickled_and_no_remote_code_trusted(path: Path) -> None:
    """safetensors and JSON only."""
    assert not trust_faults(named(path), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_are_short(path: Path) -> None:
    """A file fits into a reader's head."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("fedlora/mean.py", "import server.app"),
        ("fedlora/mean.py", "def f():\n    from flwr.common import Message"),
        ("strategies/fedit.py", "import transformers"),
        ("server/loop.py", "from clients import app"),
        ("clients/app.py", "from server.loop import run"),
    ],
)
def test_a_wrong_import_is_seen(path: str, source: str) -> None:
    """The check of layers would notice each kind of breach."""
    assert layer_faults(path, source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=config.trust)",
    ],
)
def test_misplaced_trust_is_seen(source: str) -> None:
    """The check of trust would notice each kind of breach."""
    assert trust_faults("fedlora/x.py", source)


def test_what_is_allowed_passes() -> None:
    """Flower in wire.py, methods in the command line, and the layers below."""
    assert not layer_faults("fedlora/wire.py", "from flwr.common import Message")
    assert not layer_faults("fedlora/cli/node.py", "import simulations.run")
    assert not layer_faults("fedlora/data/load.py", "import flwr_datasets")
    assert not layer_faults("server/loop.py", "import flwr, fedlora.runs, strategies.fedex")
    assert not trust_faults("fedlora/x.py", "AutoModel.from_pretrained(n, trust_remote_code=False)")
