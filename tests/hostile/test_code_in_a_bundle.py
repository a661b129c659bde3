"""A run that brings code: Flower would unpack and run the app bundle that comes with it.

Promise: a node runs only the code that its owner installed.
"""

import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.guard import APP, check
from fedlora.errors import UserError

HARMLESS = {"README.md", "LICENSE", "NOTICE.txt", ".info/CONTENT", "pyproject.toml"}
NAMES = st.one_of(
    st.sampled_from(sorted(HARMLESS)),
    st.sampled_from(
        ["a.py", "clients/proxy.py", "../x", "/etc/x", "README.md.py", "pyproject.toml/x"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12),
)
APPS = st.sampled_from(
    [APP, "clients.app:app", "os:system", "clients.proxy:app ", "Clients.proxy:app"]
)


def bundle(names: list[str], app: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        components = (
            f'[tool.flwr.app.components]\nclientapp = "{app}"\nserverapp = "server.app:app"'
        )
        archive.writestr("pyproject.toml", components)
        for name in names:
            if name != "pyproject.toml":
                archive.writestr(name, "x")
    return file.getvalue()


@given(st.lists(NAMES, max_size=4, unique=True), APPS)
@settings(max_examples=300, deadline=None)
def test_what_is_not_harmless_is_refused(names: list[str], app: str) -> None:
    """Files by any name, and any app: taken are texts beside a pyproject.toml, for the app that is
    installed."""
    if app == APP and set(names) <= HARMLESS:
        check(bundle(names, app))
    elif app != APP or any(n.endswith((".py", "x")) or "/" in n for n in names):
        with pytest.raises(UserError):
            check(bundle(names, app))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    """Whatever it is, the answer is the guard's own."""
    with pytest.raises(UserError):
        check(data)
