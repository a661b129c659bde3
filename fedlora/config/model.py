"""The configuration's section on the pretrained model."""

from typing import Literal

from pydantic import Field, field_validator

from fedlora.config.section import Section

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Model(Section):
    """The pretrained model that everyone starts from."""

    name: str = Field(
        MINILM,
        min_length=1,
        description="A hub name or a local folder. MiniLM-L6 is the default: small, and installed "
        "from a package, so that it needs no hub.",
    )
    task: str = Field("classification", description="What is learnt; see fedlora.tasks.")
    revision: str | None = Field(
        None,
        # What git allows, and no way out of the hub's cache.
        pattern=r"^\w[\w+-]*([./]\w[\w+-]*)*$",
        description="A branch, tag or commit of the hub's repository; by default its main branch, "
        "or the package that has the model. A commit never changes under a run.",
    )
    gguf: str | None = Field(
        None,
        pattern=r"^\w[\w.+-]*\.gguf$",
        description="The file of the folder or repository that holds the model, where that is a "
        "GGUF file; a folder of one such file and no config.json needs no name. It is turned into "
        "fp32 weights in the hub's cache (HF_HOME) once; what its format lost stays lost.",
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Format of the frozen base; what is trained, and the residual, are fp32 over "
        "any. By default fp32 on a CPU and bf16, in half the memory, on a GPU that has it. All "
        "nodes of a run need the same.",
    )
    tf32: bool = Field(
        False,
        description="Whether fp32 products on a GPU round their factors to TF32's 10 bits: several "
        "times as fast, as far from fp32 as bf16 is by a factor of 8. Off, as in PyTorch.",
    )
    quantize: Literal["8bit", "4bit"] | None = Field(
        None,
        description="The base's linear layers in 8 bits (LLM.int8) or 4 (NF4 with double "
        "quantisation, computed in model.dtype, by default bf16), by bitsandbytes: for a base that "
        "the GPU has no room for. All nodes of a run need the same.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep each layer's input alone and compute the rest again in the backward "
        "pass: less memory for more time. Off, since most models leave enough room.",
    )
    chat_template: str | None = Field(
        None,
        description="instruction: how a conversation becomes text, as Jinja or a file of it; by "
        "default the tokenizer's own, and a plain one where it has none. One that asks for the "
        "date is told 26 July 2024 on any day. A node renders its owner's alone, and refuses "
        "another.",
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _has_range(cls, value: object) -> object:
        if value == "fp16":
            raise ValueError(
                "its gradients underflow and its activations overflow, and no loss is scaled here: "
                "take bf16, or fp32 on a GPU without it"
            )
        return value

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, value: str | None) -> str | None:
        """A file's place is read where a person gives it, in `fedlora.settings`, and nowhere else:
        a node must not open what a run names."""
        if value is not None and "{" not in value:
            raise ValueError("no Jinja, and no file that is there")
        return value
