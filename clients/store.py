"""What stays on a client, on its disk: the view it was sent last, and the parts that are its own.

    <root>/run-<experiment>/views/
        <fingerprint>.safetensors  a view by its content, as long as a client here has it
    <root>/run-<experiment>/client-<client>/
        view-0003-1.safetensors    a view as it was to be held: a link to the one of its content
        own-0003.safetensors       its own parts after training in round 3
        reply-train.safetensors    the reply to the last order to train, and to the last to evaluate

The server names what it builds on, so a round that is repeated starts from before it. Besides that
only the newest older one is kept, in case the server has to fall back a round. A reply is kept by a
digest of its order: the same order again gets the same reply.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError, safe_open

from fedlora import profile
from fedlora.tensorfiles import save, saved
from fedlora.tensors import Tensors
from fedlora.views import View
from fedlora.wire import Parcel


class Missing(Exception):
    """The disk does not hold what the server builds on: the 'view', or the client's 'own' parts."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(why)
        self.what = what


class Store:
    """One client's files for one experiment."""

    def __init__(self, root: Path, experiment: str, client: str) -> None:
        self.path = root / f"run-{plain(experiment)}" / f"client-{plain(client)}"

    def has_view(self, tag: str) -> bool:
        """Whether it may be built on; nothing always may."""
        return not tag or self._file("view-", tag).exists()

    @profile.timed("store")
    def view(self, tag: str) -> View:
        """A file that has other values than were kept is used by nobody any more."""
        try:
            tensors, about = saved(self._file("view-", tag))
        except (OSError, SafetensorError) as e:
            raise Missing("view", f"view-{tag}: {e}") from None
        found, kept = View.of(tensors), about.get("fingerprint", "")
        if found.fingerprint != kept:
            (self._views / f"{plain(kept)}.safetensors").unlink(missing_ok=True)
            raise Missing("view", f"view-{tag} is damaged: it has other values than were kept")
        return found

    def own(self, round: int, private: bool = False) -> Tensors:
        """The parts that are its own, of a round. What was trained without privacy is none of a
        private run's, which might send it."""
        try:
            tensors, about = saved(self.path / f"own-{round:04d}.safetensors")
        except (OSError, SafetensorError) as e:
            raise Missing("own", f"own-{round:04d}: {e}") from None
        if private and about.get("private") != "yes":
            raise Missing("own", f"own-{round:04d} was trained without privacy")
        return tensors

    @profile.timed("store")
    def keep_view(self, view: View, tag: str, basis: str) -> None:
        """Clients that hold the same have one file of it together, which goes with the last."""
        self.path.mkdir(parents=True, exist_ok=True)
        shared = self._views / f"{view.fingerprint}.safetensors"
        about, own = {"fingerprint": view.fingerprint}, self._file("view-", tag)
        if not (_whole(shared) and _linked(shared, own)):
            self._views.mkdir(exist_ok=True)
            save(view.tensors, shared, about)
            if not _linked(shared, own):  # not every file system knows links
                save(view.tensors, own, about)
        self._prune("view-", plain(tag), plain(basis))

    @profile.timed("store")
    def keep_same_view(self, tag: str, basis: str) -> None:
        """The view `basis` under another name: the same file, as nobody writes into one."""
        if _linked(self._file("view-", basis), self._file("view-", tag)):
            self._prune("view-", plain(tag), plain(basis))
        else:
            self.keep_view(self.view(basis), tag, basis)

    def keep_own(self, own: Tensors, round: int, basis: int, private: bool = False) -> None:
        about = {"private": "yes" if private else "no"}
        self._keep("own-", own, f"{round:04d}", f"{basis:04d}", about)

    @profile.timed("store")
    def keep_reply(self, purpose: str, order: str, reply: Parcel) -> None:
        """For its owner alone to read, as it may hold what no server ever got."""
        told = {"order": order, "facts": reply.facts, "metrics": reply.metrics}
        self.path.mkdir(parents=True, exist_ok=True)
        save(reply.tensors, self._reply(purpose), {"told": json.dumps(told)}, mode=0o600)

    @profile.timed("store")
    def reply(self, purpose: str, order: str) -> Parcel | None:
        """The reply to this order, if it is the last one that was kept, and whole."""
        try:
            tensors, metadata = saved(self._reply(purpose))
            told = json.loads(metadata["told"])
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        return Parcel(told["facts"], tensors, told["metrics"]) if told["order"] == order else None

    def _reply(self, purpose: str) -> Path:
        return self.path / f"reply-{plain(purpose)}.safetensors"

    @property
    def _views(self) -> Path:
        return self.path.parent / "views"

    def _file(self, kind: str, tag: str) -> Path:
        return self.path / f"{kind}{plain(tag)}.safetensors"

    @profile.timed("store")
    def _keep(
        self,
        kind: str,
        tensors: Tensors,
        tag: str,
        basis: str,
        about: dict[str, str] | None = None,
    ) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        save(tensors, self.path / f"{kind}{tag}.safetensors", about)
        self._prune(kind, tag, basis)

    def _prune(self, kind: str, tag: str, basis: str) -> None:
        names = sorted(p.name for p in self.path.glob(f"{kind}*.safetensors"))
        older = [n for n in names if n < f"{kind}{basis or tag}.safetensors"]
        for name in older[:-1]:
            (self.path / name).unlink()
        for shared in self._views.glob("*.safetensors") if older[:-1] else ():
            with suppress(FileNotFoundError):  # of another process that does the same
                if shared.stat().st_nlink == 1:
                    shared.unlink()


def _whole(path: Path) -> bool:
    """Whether a file of tensors has all that its header says."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _linked(held: Path, name: Path) -> bool:
    """Give a file another name too; whether that could be."""
    aside = name.with_name(f".{name.name}.{os.getpid()}")
    try:
        os.link(held, aside)
        os.replace(aside, name)
    except OSError:
        return False
    else:
        return True
    finally:
        aside.unlink(missing_ok=True)  # it is still there where both were one file before


def plain(name: str) -> str:
    """A name that came from elsewhere, as part of a file name that leads nowhere else."""
    return quote(name, safe="")
