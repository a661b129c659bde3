"""An observer for benchmarks: a round that somebody is left out of measures something else."""

from fedlora.progress import Observer


class Everybody(Observer):
    """Raises RuntimeError where a client takes no part in a phase."""

    def client(
        self, round: int, phase: str, client: str, loss: float | None, reason: str | None = None
    ) -> None:
        if reason:
            raise RuntimeError(f"round {round}, {phase}: {client}: {reason}")
