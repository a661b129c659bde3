"""The configuration's section on what a language model is asked to say."""

from pydantic import Field, PositiveInt

from fedlora.config.section import Section


class Generate(Section):
    """Answers that people can read, beside the numbers."""

    rows: int = Field(
        0,
        ge=0,
        description="instruction: test rows that the server answers before round 1 and after the "
        "last round, into answers.jsonl. None by default, as a token an answer costs a pass.",
    )
    max_new_tokens: PositiveInt = Field(
        64, description="Tokens an answer has at most; 64 are two or three sentences."
    )
    temperature: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="0: always the likeliest token, which repeats. Above it tokens are drawn from "
        "run.seed, the more evenly the larger; 0.7 is usual for a conversation.",
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="With a temperature: drawn among the likeliest tokens that together have this "
        "probability; 1: among all.",
    )
