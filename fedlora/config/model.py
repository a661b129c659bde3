"""The configuration's section on the pretrained model."""

from pathlib import Path

from pydantic import Field, field_validator

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
    chat_template: str | None = Field(
        None,
        description="instruction: how a conversation becomes text, as Jinja or a file of it; by "
        "default the tokenizer's own, and a plain one where it has none.",
    )

    @field_validator("chat_template")
    @classmethod
    def _read(cls, value: str | None) -> str | None:
        """The template itself, as other machines may not have the file."""
        if value is None or "{" in value:
            return value
        try:
            return Path(value).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"neither Jinja nor a file that can be read ({error})") from None
