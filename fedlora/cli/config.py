"""`fedlora config`: what can be set."""

from fedlora.cli import app


@app.command()
def config() -> None:
    """Every field of the configuration and every setting of a method, with type, default and
    reason, as Markdown: docs/configuration.md."""
    from clients.owner import Owner
    from fedlora.reference import reference
    from strategies import BUILTIN, load

    print(reference({name: load(name) for name in BUILTIN}, Owner), end="")
