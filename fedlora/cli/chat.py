"""`fedlora chat`: a conversation with a run's language model."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fedlora.cli import app
from fedlora.cli.evaluate import Client, Run
from fedlora.errors import UserError
from fedlora.untrusted import block


@app.command()
def chat(
    run: Run,
    client: Client = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Say this, print the answer, and end.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0: always the likeliest token.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens an answer has at most.")
    ] = None,
) -> None:
    """Talk to a run's language model; /quit or Ctrl-D ends it. What comes through a pipe is asked
    line by line."""
    from fedlora import settings
    from fedlora.generation import Speaker
    from fedlora.runs import RunDir
    from fedlora.streams import stream
    from simulations import results

    opened = RunDir.open(run)
    task = settings.read(opened.path / "config.toml", [])["model"]["task"]
    if task != "instruction":
        raise UserError(
            f"the run {opened.path.name} learnt model.task = {task}, which does not talk: score it "
            "with fedlora evaluate"
        )
    chosen = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    given = {"generate": {k: v for k, v in chosen.items() if v is not None}}
    resident = results.made(opened, given)
    results.speak(resident, opened, client)
    config = resident.config
    speaker = Speaker(resident.adapter.model, resident.task.tokenizer, config.generate)
    draw = stream(config.run.seed, "chat")
    if prompt is not None:
        speaker.say([{"role": "user", "content": prompt}], draw, _tell)
        print()
        return
    _converse(speaker, draw)


def _converse(speaker: Any, draw: Any) -> None:
    talk: list[dict[str, str]] = []
    for line in _lines():
        talk.append({"role": "user", "content": line})
        try:
            answer = speaker.say(talk, draw, _tell)
        except UserError as e:
            talk.pop()
            print(block(str(e)), file=sys.stderr)
            continue
        print(flush=True)
        talk.append({"role": "assistant", "content": answer})


def _lines() -> Iterator[str]:
    """What a person types or a pipe brings, without empty lines, until it ends."""
    asking = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if asking else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line:
            yield line


def _tell(text: str) -> None:
    """What a model says must not steer the terminal."""
    print(block(text), end="", flush=True)
