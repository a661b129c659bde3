"""The configuration's section on the pretrained model."""

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
        min_length=1,
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
    chat_template: str | None = Field(
        None,
        description="instruction: how a conversation becomes text, as Jinja or a file of it; by "
        "default the tokenizer's own, and a plain one where it has none.",
    )

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, value: str | None) -> str | None:
        """A file's place is read where a person gives it, in `fedlora.settings`, and nowhere else:
        a node must not open what a run names."""
        if value is not None and "{" not in value:
            raise ValueError("no Jinja, and no file that is there")
        return value
