"""The configuration's section on the pretrained model."""

from pydantic import Field

from fedlora.config.section import Section

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class Model(Section):
    """The pretrained model that everyone starts from."""

    name: str = Field(
        MINILM,
        min_length=1,
        description="A hub name or a local folder. MiniLM-L6 is the default: small, and installed "
        "from a package, so that it needs no hub.",
    )
    task: str = Field("classification", description="What is learnt; see fedlora.tasks.")
