"""The configuration: its sections and fields, each with unit, default and reason.

Values come from the defaults here, then the method's own documented defaults, then a TOML file,
then `section.key=value`; the later one wins. `fedlora.settings` reads and merges them.
"""

from typing import Any

from pydantic import model_validator

from fedlora.config.adapter import Adapter
from fedlora.config.data import Data
from fedlora.config.generate import Generate
from fedlora.config.model import MINILM, SMOLLM2, Model
from fedlora.config.privacy import Privacy
from fedlora.config.run import Run
from fedlora.config.section import Section
from fedlora.config.simulation import Simulation
from fedlora.config.train import Train

__all__ = [
    "MINILM",
    "SMOLLM2",
    "Adapter",
    "Config",
    "Data",
    "Generate",
    "Model",
    "Privacy",
    "Run",
    "Section",
    "Simulation",
    "Train",
]


class Config(Section):
    run: Run = Run()
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data = Data()
    strategy: dict[str, Any] = {"name": "fedex"}
    train: Train = Train()
    privacy: Privacy = Privacy()
    generate: Generate = Generate()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _packs(self) -> "Config":
        if self.data.packing and self.model.task != "instruction":
            raise ValueError("data.packing is for model.task = instruction alone")
        if self.data.packing and self.privacy.on:
            raise ValueError(
                "data.packing makes one row of several, and [privacy] protects one at a time: "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _speaks(self) -> "Config":
        if self.generate.rows and self.model.task != "instruction":
            raise ValueError(
                f"generate.rows = {self.generate.rows} asks for answers in words, and model.task = "
                f"{self.model.task} gives none: leave it out, or set model.task = instruction"
            )
        return self

    @property
    def method(self) -> str:
        return str(self.strategy["name"])
