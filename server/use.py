"""Whether a run came to anything: did clients' updates ever change the model, and if not, why."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedlora.errors import Failed, MethodError

SHOWN = 5  # clients whose reasons are said


@dataclass
class Use:
    """What became of clients' updates so far.

    Attributes:
        given: whether any client ever gave one that is usable.
        used: whether the model ever took one in: too few in a round (run.min_replies) are not.
        reasons: each client's latest for giving none.
        wrong: who blamed the method.
        discreet: whether nobody is to know who took part, or said what.
    """

    given: bool = False
    used: bool = False
    reasons: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    discreet: bool = False

    @classmethod
    def read(cls, memory: Mapping[str, Any]) -> "Use":
        """From a checkpoint's memory; one from before this was noted counts as used."""
        return cls(**memory["use"]) if "use" in memory else cls(given=True, used=True)

    def dump(self) -> dict[str, Any]:
        """For a checkpoint's memory."""
        return {"use": asdict(self)}

    def round(self, asked: Collection[str], missing: Mapping[str, str], wrong: set[str]) -> None:
        """Note what a round's clients gave.

        Args:
            missing: those that gave no usable update, and why.
            wrong: of those, who blamed the method.
        """
        self.given |= len(missing) < len(asked)
        if self.given:
            self.reasons, self.wrong = {}, []  # nobody's concern any more
            return
        self.reasons |= missing
        self.wrong = sorted({*self.wrong, *wrong})

    def blamed(self, present: Collection[str]) -> None:
        """Raises MethodError where the method's mistake is plain: no client has ever given a usable
        update, and each that is there has blamed the method. Fewer may be lying; what they say is
        in the end's reasons, if nobody else trains either."""
        if present and not self.given and set(present) <= set(self.wrong):
            said = "every client that is there blames the method: its own log says more"
            raise MethodError(said if self.discreet else self._said("\n"))

    @property
    def nothing(self) -> bool:
        """Whether nothing was trained, where that may be told."""
        return not (self.used or self.discreet)

    def check(self) -> None:
        """Raises Failed where the run trained nobody."""
        if self.used:
            return
        why = f": {self._said('; ')}" if self.reasons and not self.discreet else ""
        if self.given:
            why = ": no round had as many usable updates as run.min_replies asks for"
        raise Failed(f"no client's update was used in any round, so nothing was trained{why}")

    def _said(self, between: str) -> str:
        lines = [f"client {c}: {why}" for c, why in sorted(self.reasons.items())]
        more = [f"and {len(lines) - SHOWN} clients more"] if len(lines) > SHOWN else []
        return between.join([*lines[:SHOWN], *more])
