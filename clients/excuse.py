"""What a client tells of its failures; its own log has all of them in full.

Every failure of a client becomes a reply here, whatever raised it and wherever. On a node:

    what the owner refuses                told: settings alone decide it, before rows are looked at
    anything else, in a private run       one and the same, so that it says nothing about rows
    a method's mistakes, in a plain run   told: a method sees tensors and no rows
    anything else, in a plain run         its kind, whose words might quote a row

A simulation's rows are the researcher's own, and all is told. Of a private one, whose metrics may
be published, only the kind is. What this machine's disk refuses is the server's affair there too.
"""

import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import Context

from clients.channel import FAILED
from clients.owner import Refused, flat, owner_of
from fedlora import files, settings
from fedlora.config.privacy import Privacy
from fedlora.errors import MethodError, UserError
from fedlora.orders import answer
from fedlora.wire import Parcel

log = logging.getLogger("fedlora.client")


def excuse(e: Exception, context: Context) -> Parcel:
    """The reply that stands for a failure over a message of this context."""
    if isinstance(e, Refused):
        log.error("refused: %s", e)
        return answer("error", str(e))
    barred = isinstance(e, OSError) and files.barred(e)
    known = isinstance(e, UserError) or barred
    log.error("this client could not answer: %s", e, exc_info=None if known else e)
    node, private = _where(context.node_config, context.run_config)
    if isinstance(e, OSError) and barred and not node:
        return answer("system", str(e.strerror) if private else files.trouble(e))
    if node and private:
        return answer("error", FAILED)
    if isinstance(e, MethodError):
        return answer("wrong", str(e))
    if node or private:
        return answer("error", f"{type(e).__name__}: its own log says more")
    return answer("error", str(e) if known else f"{type(e).__name__}: {e}")


def _where(node_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether this is an owner's node, and whether the run is private or may be."""
    node = True
    try:
        owner = owner_of(node_config)
        node = owner is not None
        asked = settings.from_flat(flat(run_config)).get("privacy", {})
        budget = owner is not None and owner.epsilon is not None
        return node, budget or Privacy.model_validate(asked).on
    except Exception:  # nobody knows what the run is
        return node, True
