"""bitsandbytes is loaded for a quantised base alone."""

import subprocess
import sys
from importlib.util import find_spec
from textwrap import dedent

import pytest

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")

CHILD = """
    import sys
    from fedlora import quantised
    quantised.late()
    import peft
    from torch import nn
    def adapted(layer, **told):
        base = nn.Sequential(layer)
        vars(base).update(told)
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"]))
        print(type(model.get_submodule("base_model.model.0")).__module__)
    adapted(nn.Linear(8, 8))
    print("bitsandbytes" in sys.modules)
    quantised.needed()
    import bitsandbytes
    adapted(bitsandbytes.nn.Linear4bit(8, 8), is_loaded_in_4bit=True)
"""


def test_peft_does_without_until_a_quantised_base_is_asked_for() -> None:
    """Then its layers are those of bitsandbytes, as where it was there from the start."""
    command = [sys.executable, "-c", dedent(CHILD)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, four = "peft.tuners.lora.layer", "peft.tuners.lora.bnb"
    assert done.stdout.splitlines() == [plain, "False", four]
