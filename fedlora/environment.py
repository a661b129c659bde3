"""What a run was made with, as its `run.json` keeps it: versions and the machine."""

import os
import platform
from importlib import metadata

PACKAGES = ("torch", "flwr", "transformers", "peft")


def environment() -> dict[str, str | int | None]:
    """Versions of Python, fedlora and what decides how a model trains, the platform, and how many
    CPUs it has (null where the system does not say). A package that is not installed is null."""
    from fedlora import __version__

    return {
        "fedlora": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
