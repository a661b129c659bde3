"""A language model's whole way: federated, scored, answering, exported, talked to; with a tiny
Llama of random weights that learns which colour things have."""

import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedlora import cli
from fedlora.runs import RunDir
from simulations import results
from tests.fedlora.tasks import talk

Call = Callable[..., tuple[int, str, str]]
SETTINGS = [
    *("model.name=model", "model.task=instruction", "data.name=rows.jsonl", "data.test=0.2"),
    *("data.public=6", "adapter.rank=4", "adapter.target_modules=all-linear", "train.steps=15"),
    *("run.rounds=2", "simulation.workers=0", "generate.rows=3", "generate.max_new_tokens=6"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llm")
    talk.save(made / "model")
    talk.rows(made / "rows.jsonl")
    return made


@pytest.fixture
def fedlora(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs the command in the folder; (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        found = capsys.readouterr()
        return int(exit.value.code or 0), found.out, found.err

    return call


def rounds(run: Path) -> Sequence[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "round"]


def test_from_rows_to_a_talk(fedlora: Call, folder: Path) -> None:
    """A newcomer's commands, one after another: the held-out loss falls, answers come before and
    after, the numbers of `evaluate` are those of the run, and the model talks."""
    more = ["train.lr=0.05", "train.steps=30", "run.baseline=true"]
    code, told, error = fedlora("run", *SETTINGS, *more, "strategy.name=fedex", "run.name=mine")
    assert code == 0, error
    first, _, last = rounds(folder / "runs/mine")
    assert last["test_loss"] < first["test_loss"] - 0.5 and last["score"] > first["score"]
    assert f"{math.exp(last['test_loss']):.2f}" in told and "perplexity" in told
    assert "round 0" in told and "round 2" in told and "answers.jsonl" in told

    lines = (folder / "runs/mine/answers.jsonl").read_text("utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["round"] for a in answers] == [0] * 3 + [2] * 3
    assert all(a["reference"].startswith("it is") for a in answers)
    matches = [a["answer"] == a["reference"] for a in answers if a["round"] == 2]
    assert last["exact_match"] == pytest.approx(sum(matches) / 3)
    assert {"rouge_l", "f1", "exact_match"} <= first.keys()

    code, told, _ = fedlora("evaluate", "mine", "generate.rows=2", "--json")
    found = json.loads(told)
    assert code == 0 and found["answers"] == 2 and found["round"] == 2
    assert found["token_accuracy"] == pytest.approx(last["score"])
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(last["test_loss"]), rel=1e-5)
    code, told, _ = fedlora("evaluate", "mine", "--data", "rows.jsonl", "--client", "ann")
    assert code == 0 and "60" in told and "client ann" in told

    prompt = answers[-1]["prompt"]
    code, told, error = fedlora("chat", "mine", "--prompt", prompt, "--max-new-tokens", "6")
    assert code == 0, error
    assert told.strip() == answers[-1]["answer"]


def test_a_pipe_is_a_conversation(
    fedlora: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line, each answered; /quit ends it. Who did not learn to talk says so."""
    fedlora("run", *SETTINGS, "run.name=piped", "run.rounds=1", "generate.rows=0")
    lines = "what colour has thing1\n\nthing2 is what colour\n/quit\nnobody asks this\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, told, error = fedlora("chat", "piped", "--max-new-tokens", "3", "--temperature", "0.7")
    assert code == 0, error
    assert len(told.splitlines()) == 2
    config = folder / "runs/piped/config.toml"
    config.write_text(config.read_text().replace('"instruction"', '"classification"'))
    code, _, error = fedlora("chat", "piped")
    assert code == 2 and "does not talk" in error


METHODS = {
    "fedit": ["adapter.rslora=true"],
    "ffa": ["train.lr=0.05"],
    "fedex": [],
    "fedex, local": ["strategy.assignment=local"],
    "fedex, reinit": ["strategy.assignment=reinit"],
    "fedsa": [],
    "fedsa, vera": ["adapter.kind=vera", "train.lr=0.1"],
    "fedsb": ["strategy.init=server", "train.lr=0.05"],
    "fslora": ["strategy.ranks=[4,2]"],
}


@pytest.mark.parametrize("method", METHODS)
def test_an_export_has_the_logits_of_the_federated_model(
    method: str, fedlora: Call, folder: Path
) -> None:
    """In plain PEFT, to 1e-5, the global model and a client's own; its card says what it is."""
    name = method.replace(", ", "-")
    strategy = f"strategy.name={method.split(',')[0]}"
    short = ["run.rounds=2", "generate.rows=0", "train.steps=4", "train.lr=0.02"]
    code, _, error = fedlora(
        "run", *SETTINGS, *short, strategy, *METHODS[method], f"run.name={name}"
    )
    assert code == 0, error
    for client in (None, "bob"):
        out = f"{name}-{client}"
        options = ["--client", client] if client else []
        assert fedlora("export", name, out, *options)[0] == 0
        resident, _ = results.loaded(RunDir.open(name), client)
        ids = torch.arange(3, 25)[None]
        with torch.inference_mode():
            expected = resident.adapter.model(input_ids=ids).logits
            base = AutoModelForCausalLM.from_pretrained("model")
            start = base(input_ids=ids).logits
            plain = PeftModel.from_pretrained(base, out).eval()(input_ids=ids).logits
        torch.testing.assert_close(plain, expected, rtol=0, atol=1e-5)
        stays = method.startswith("fedsa") and not client  # B, so that the global one is the base
        assert stays or (plain - start).abs().max() > 1e-4
        card = (folder / out / "README.md").read_text("utf-8")
        assert card.startswith("---\nbase_model: model\n") and strategy[14:] in card
        assert "| bob | " in card and "without differential privacy" in card
        assert ("personalised model of the client `bob`" in card) == (client == "bob")
