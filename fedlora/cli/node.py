"""`fedlora node`: for the owner of data, on the machine that holds them."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli import Settings, app, tree_of

node = typer.Typer(help="For an owner of data: join runs with rows that stay here.")
app.add_typer(node, name="node", no_args_is_help=True)

NodeConfig = Annotated[
    str,
    typer.Option(
        metavar="'key=value …'|FILE.toml",
        help="The owner's settings, text in quotes: client, data, text, label, prompt, context, "
        "response, rank, device, parallel, threads, state-dir, model, revision, chat-template, "
        "methods, max-rounds, max-steps, max-payload, epsilon, idle.",
    ),
]
Certificates = Annotated[
    Path | None,
    typer.Option(metavar="CA.crt", help="Vouches for the superlink; default: the system's."),
]
Key = Annotated[
    Path | None, typer.Option(metavar="KEY", help="This node's private key, by node key.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS: for trying things.")]


@node.command()
def start(
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="What to join.")],
    node_config: NodeConfig,
    root_certificates: Certificates = None,
    key: Key = None,
    insecure: Insecure = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of loopback, for the node's own processes."),
    ] = None,
    health: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of loopback, for gRPC health checks.")
    ] = None,
) -> None:
    """Join a superlink and answer its runs until told to end. Only code that is installed here
    runs, and only what the owner's settings allow. The node ends when the superlink sends it away;
    to come back, with growing pauses, is for a service manager (systemd, a container's restart
    policy)."""
    from clients import node as nodes

    given = nodes.settings_of(node_config)
    to = nodes.Superlink(superlink, root_certificates, key, insecure)
    nodes.start(given, to, port, health)


@node.command()
def check(
    node_config: NodeConfig,
    arguments: Settings = None,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="What is to be joined.")
    ] = None,
    root_certificates: Certificates = None,
    key: Key = None,
    insecure: Insecure = False,
    rows: Annotated[
        bool, typer.Option("--rows", help="Show three rows, as the model reads them, too.")
    ] = False,
) -> None:
    """Whether this node is ready for a run, without joining: the rows, the model, a training step,
    the key, the superlink. Nothing leaves this machine, and no word of a row is shown unless asked
    for. The exit code is 2 where something is wrong."""
    from clients.check import Check
    from clients.node import Superlink
    from fedlora import report, settings
    from fedlora.cli import check as looks
    from strategies import load

    config, _ = settings.resolve(tree_of(arguments), load)
    to = Superlink(superlink or "", root_certificates, key, insecure)
    os.umask(0o077)  # whatever is written is nobody else's
    checks = Check(node_config, config, to)
    lines = checks.lines()
    console, table = (
        Console(),
        Table("check", "result", "detail", box=box.SIMPLE_HEAD, pad_edge=False),
    )
    shown = {True: Text("ok", "green"), False: Text("FAILED", "bold red"), None: Text("–")}
    for line in lines:
        table.add_row(line.check, shown[line.ok], Text(line.detail))
    report.show(table, console)
    console.print("Not looked at: whether the superlink knows this key. Only joining tells.")
    wrong = [line for line in lines if line.ok is False]
    if wrong:
        raise typer.Exit(2)
    looks.looked_at(checks.loaded, console, looks.NODE | (looks.READ if rows else {}))


@node.command("key")
def make_key(
    path: Annotated[Path, typer.Argument(help="Where the private key goes; must not exist.")],
) -> None:
    """Make this node's key pair: PATH stays here, PATH.pub goes to the superlink's operator, who
    registers it by flwr supernode register."""
    from clients import keys

    public = keys.make(path)
    fingerprint = keys.fingerprint(keys.read(path).public_key())
    print(f"key: {path}\nfor the operator: {public}\nfingerprint: {fingerprint}")
