"""When a run's model is asked, what is left of it, and what an export's card says."""

import json
from pathlib import Path

from tests.test_llm_path import SETTINGS, Call, fedlora, folder, rounds  # noqa: F401

QUICK = ["train.steps=2", "generate.rows=2", "generate.max_new_tokens=2"]


def asked(run: Path) -> list[int]:
    """The rounds of answers.jsonl, in its order."""
    lines = (run / "answers.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["round"] for line in lines]


def test_a_resumed_run_has_every_answer_once(fedlora: Call, folder: Path) -> None:  # noqa: F811
    """Before the first and after the last round; what a crash left of a round that was not
    committed makes way for what it says when it is done again."""
    fedlora("run", *SETTINGS, *QUICK, "run.name=again", "run.rounds=1")
    run = folder / "runs/again"
    assert asked(run) == [0, 0, 1, 1]
    lines = (run / "answers.jsonl").read_text("utf-8").splitlines(keepends=True)
    late = [line.replace('"round": 1', '"round": 2') for line in lines[2:]]
    (run / "answers.jsonl").write_text("".join(lines + late), "utf-8")
    code, _, error = fedlora("run", "--resume", "again", "run.rounds=2")
    assert code == 0, error
    assert asked(run) == [0, 0, 1, 1, 2, 2]
    assert ["f1" in row for row in rounds(run)] == [True, True, True]


def test_what_stays_with_clients_has_no_global_answers(
    fedlora: Call,  # noqa: F811
    folder: Path,  # noqa: F811
) -> None:
    """FedSA's model at the server is nobody's once clients differ."""
    code, _, error = fedlora("run", *SETTINGS, *QUICK, "run.name=own", "strategy.name=fedsa")
    assert code == 0, error
    first, *_, last = rounds(folder / "runs/own")
    assert asked(folder / "runs/own") == [0, 0]
    assert first["f1"] is not None and last["f1"] is None and last["test_loss"] is not None
    for command in (("evaluate", "own"), ("chat", "own", "--prompt", "what")):
        code, told, error = fedlora(*command)
        assert code == 2 and not told and "--client (of ann, bob, cy)" in error
    assert fedlora("evaluate", "own", "--client", "bob")[0] == 0
    card = (folder / "runs/own/adapter/README.md").read_text("utf-8")
    assert "clients' own models on the server's" in card and "of the global model" not in card


def test_only_a_language_model_is_asked(fedlora: Call) -> None:  # noqa: F811
    """The mistake is found before anything is read."""
    code, _, error = fedlora("run", "generate.rows=2")
    assert code == 2 and "model.task = classification gives none" in error


def test_a_private_run_s_card_says_what_was_spent(
    fedlora: Call,  # noqa: F811
    folder: Path,  # noqa: F811
) -> None:
    """ε, δ and whose; and of noise that repeats that it protects nobody."""
    private = ["privacy.epsilon=8", "privacy.insecure_seed=1", "train.batch_size=4"]
    code, _, error = fedlora(
        "run", *SETTINGS, *QUICK, *private, "generate.rows=0", "run.name=secret"
    )
    assert code == 0, error
    card = (folder / "runs/secret/adapter/README.md").read_text("utf-8")
    assert "privacy: ε ≤ " in card and "example-level" in card
    assert "nothing here is private" in card and "without differential privacy" not in card
    assert fedlora("export", "secret", "whole", "--merge")[0] == 0
    merged = (folder / "whole/README.md").read_text("utf-8")
    assert "library_name: transformers" in merged and "AutoModelForCausalLM" in merged


def test_a_card_does_not_tell_whom_central_privacy_protects(
    fedlora: Call,  # noqa: F811
    folder: Path,  # noqa: F811
) -> None:
    """Who took part, and with how many rows, is what the noise hides: a card is published."""
    private = ["privacy.mode=central", "privacy.epsilon=8", "strategy.name=fedit"]
    code, _, error = fedlora(
        "run", *SETTINGS, *QUICK, *private, "generate.rows=0", "run.name=hidden"
    )
    assert code == 0, error
    assert "ann" not in (folder / "runs/hidden/metrics.jsonl").read_text("utf-8")
    card = (folder / "runs/hidden/adapter/README.md").read_text("utf-8")
    assert "user-level" in card and "training rows" not in card.lower()
    assert not any(name in card for name in ("| ann", "| bob", "| cy"))
