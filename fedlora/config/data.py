"""The configuration's section on rows and whose they are."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedlora.config.section import Section


class Data(Section):
    """Rows, and how they are divided among clients."""

    name: str = Field(
        "sentiment",
        min_length=1,
        description="'sentiment' or 'definitions' (bundled), a hub name, a .csv, .tsv, .jsonl, "
        ".json (these also with .gz) or .parquet file, or a folder with train and test files, or "
        "(partition = 'split') with one file a client; there test and public are the server's own "
        "rows, and with nothing else it is a coordinator's.",
    )
    text: str = Field("text", description="The column with the text, as the bundled data has it.")
    label: str = Field("label", description="The column with the label, a string or an integer.")
    format: Literal["auto", "alpaca", "dolly", "messages", "sharegpt", "columns"] = Field(
        "auto",
        description="instruction: the form that conversations are in, see "
        "fedlora.data.conversations; by default the one whose columns are there.",
    )
    prompt: str = Field("prompt", description="format = columns: the column with the question.")
    context: str | None = Field(
        None, description="format = columns: a column with more for the model to read, if any."
    )
    response: str = Field("response", description="format = columns: the column with the answer.")
    labels: list[str] | None = Field(
        None,
        min_length=2,
        description="The label names, in order, where nobody's rows have them all; by default "
        "those of the data.",
    )
    partition: Literal["iid", "dirichlet", "natural", "shards", "split"] = Field(
        "natural",
        description="How rows come to clients: by a column's values (real owners), evenly, "
        "with skewed labels, in label-sorted shards, or one file a client.",
    )
    clients: PositiveInt = Field(
        4, description="Number of clients for iid, dirichlet and shards; the data says otherwise."
    )
    by: str = Field("domain", description="natural: the column whose values are the clients.")
    pooled: bool = Field(
        False, description="One client with everyone's rows: the centralised baseline."
    )
    concentration: PositiveFloat = Field(
        0.5, description="dirichlet: smaller is more skewed in labels; 0.5 is the literature's."
    )
    shards: PositiveInt = Field(
        2, description="shards: label-sorted pieces a client; FedAvg's paper has two."
    )
    rows: PositiveInt | None = Field(
        None, description="Most rows a client uses (training and held out); all by default."
    )
    holdout: float = Field(
        0.1, ge=0, lt=1, description="Share of a client's rows kept for its personalised score."
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="Share of rows for the server's test where there is no file."
    )
    test_rows: PositiveInt | None = Field(
        None,
        description="Most of the server's test rows that it scores on, drawn once; all by default. "
        "A language model takes seconds for each dozen.",
    )
    public: int = Field(
        128,
        ge=0,
        description="Rows set aside for the server (Fed-SB's start), at most a tenth of all; "
        "nobody trains on them.",
    )
    max_length: PositiveInt = Field(
        48,
        description="Tokens a row, as far as the model reads; longer ones are truncated, as 3 % of "
        "the bundled are, and the run says how many. Instruction tuning has 512 unless told "
        "otherwise.",
    )
    learn: Literal["response", "all"] = Field(
        "response",
        description="instruction: the tokens whose prediction is learnt and scored, those of the "
        "answers or of the whole conversation.",
    )
    packing: bool = Field(
        False,
        description="instruction: train on a client's rows laid end to end up to max_length, each "
        "without a view of the others. Off, as rows of like length share passes in any case.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> "Data":
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels names a label twice")
        return self
