"""What a pass comes to, by a task's own rows of nobody's."""

from pathlib import Path
from typing import Any

import pytest

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.errors import UserError
from fedlora.reached import reached
from tests.fedlora.adapters.padded import traces
from tests.fedlora.architectures import task


def adapter(own: Any, names: list[str] | str) -> Adapter:
    fields = config.Adapter(kind="lora", rank=2, target_modules=names)
    return Adapter(own.model(0), fields, seed=0)


def test_a_layer_that_gets_all_tokens_end_to_end_is_in_the_way(tmp_path: Path) -> None:
    """Also of private training, which is refused before anything is spent."""
    own = task("opt", "classification", tmp_path / "base")
    assert reached(own, adapter(own, ["q_proj", "v_proj"]), private=True).apart == ""
    made = adapter(own, ["q_proj", "fc1"])
    before = traces(made)
    found = reached(own, made)
    assert "layers.0.fc1 is given 8 rows" in found.apart and not found.missed and not found.told()
    with pytest.raises(UserError, match=r"each row's own gradient, and .*fc1.*target_modules"):
        reached(own, made, private=True)
    assert traces(made) == before, "nothing is left behind"


def test_layers_that_no_row_comes_to_are_told(tmp_path: Path) -> None:
    """A decoder's that look at what nobody encodes; and where there are no others, it is an
    error."""
    own = task("bart", "instruction", tmp_path / "base")
    found = reached(own, adapter(own, ["q_proj"]))
    assert [k for k in found.missed if "encoder_attn" in k] == found.missed and not found.apart
    assert found.told().startswith("2 of 4 adapted layers are on no row's way")
    with pytest.raises(UserError, match=r"no row comes to any layer .*encoder_attn"):
        reached(own, adapter(own, r".*encoder_attn\.[qv]_proj"))


def test_a_head_that_cannot_run_copy_by_copy_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its code says to it."""
    own = task("bert", "classification", tmp_path / "base")
    made = adapter(own, ["query"])
    inner: Any = made.model.get_base_model().classifier.modules_to_save["default"]
    plain = type(inner).forward
    monkeypatch.setattr(inner, "forward", lambda x: plain(inner, x) * float(x.sum() != 0))
    assert reached(own, made).apart
