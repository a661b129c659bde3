"""The first files of a method of one's own: its class, its test, and a configuration that runs."""

import importlib.util
import keyword
import re
from importlib.resources import files as resources
from pathlib import Path
from string import Template

from fedlora import files
from fedlora.errors import UserError

FILES = {
    "{}.py": "method.py.template",
    "test_{}.py": "test.py.template",
    "{}.toml": "config.toml.template",
}


def new_strategy(name: str, folder: Path) -> list[Path]:
    """Write the files of a method into a folder, which is made where it is missing.

    Args:
        name: in CamelCase or snake_case.

    Raises:
        UserError: where the name does not do, or a file is there already; then nothing is written.
    """
    module, title = names(name)
    paths = {folder / file.format(module): source for file, source in FILES.items()}
    if there := [str(path) for path in paths if path.exists()]:
        raise UserError(f"already there: {', '.join(there)}: choose another name or --directory")
    if importlib.util.find_spec(module):
        raise UserError(
            f"there is a module '{module}' already, and the method's would hide it: choose another "
            "name"
        )
    texts = {
        path: Template(resources(__name__).joinpath(source).read_text("utf-8"))
        for path, source in paths.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            files.write(path, text.substitute(module=module, name=title))
    except OSError as e:
        for path in paths:
            path.unlink(missing_ok=True)
        raise UserError(f"the files cannot be written into {folder}: {e}") from None
    return list(paths)


def names(name: str) -> tuple[str, str]:
    """The module's name and the class's: ("my_method", "MyMethod") from either. Capitals that are
    there are kept: FedSVD gives ("fed_svd", "FedSVD"). Raises UserError where it is no name."""
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    title = name if name[:1].isupper() else "".join(w[:1].upper() + w[1:] for w in name.split("_"))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise UserError(
            f"'{name}' is no name for a method: write it in CamelCase or snake_case, in letters, "
            "digits and _, as in DampedMean or damped_mean"
        )
    return module, title
