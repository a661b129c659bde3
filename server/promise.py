"""What a private run promises, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora import report


def promise(rows: Sequence[report.Row], privacy: Mapping[str, Any]) -> list[str]:
    """What was spent, and what that protects; nothing where the run is not private. `privacy` is
    the configuration's section as TOML has it."""
    rounds = report.rounds_of(rows)
    if not report.private(rounds):
        return []
    epsilon, delta = (rounds[-1].get(key) for key in ("epsilon", "delta"))
    bound = "ε is unknown or infinite" if epsilon is None else f"ε ≤ {report.spent(epsilon)}"
    at = "" if delta is None else f" at δ = {report.upward(delta)}"
    by = f"{str(privacy['accountant']).upper()} accountant"
    if privacy["mode"] == "central":
        protects = "user-level, noise at the server"
    else:
        protects = "example-level"
        spenders = {row["client"] for row in rows if row["kind"] == "client" and "epsilon" in row}
        by = f"largest of {len(spenders)} client{'s' * (len(spenders) != 1)}, {by}"
    lines = [f"privacy: {bound}{at} ({by}), {protects}"]
    seed = privacy["insecure_seed"]
    if seed != "null":
        lines.append(
            f"warning: privacy.insecure_seed = {seed} makes the noise predictable: "
            "nothing here is private"
        )
    return lines
