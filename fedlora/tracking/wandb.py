"""Weights & Biases. Its own environment variables say where: WANDB_PROJECT ("fedlora" by default),
WANDB_ENTITY, WANDB_MODE=offline, WANDB_BASE_URL.

The W&B run has the experiment's id, so that a resumed run goes on in it. W&B takes a step once: a
round that is done again keeps there what it had at first.

    <run>/wandb/             W&B's own files; after an offline run, for `wandb sync`
    <run>/wandb/last-round   the last round that W&B was given
"""

import os
from collections.abc import Mapping

import wandb

from fedlora import files
from fedlora.tracking import tracker

PATIENCE = 60.0  # seconds for what is on its way at the end; the rest stays for `wandb sync`
# The numbers alone: nothing that is printed, no code, and nothing about the machine.
QUIET = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class Tracker(tracker.Tracker):
    def __init__(self, facts: tracker.Facts) -> None:
        self.mark = facts.folder / "wandb" / "last-round"
        if self.mark.is_file():
            self.last = int(self.mark.read_text("utf-8"))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "fedlora",
            id=facts.id,
            name=facts.name,
            resume="allow",
            dir=facts.folder,
            tags=[f"{k}:{v}"[-64:] for k, v in facts.tags.items()],  # as long as W&B has them
            config=dict(facts.settings),
            allow_val_change=True,  # a resumed run may have more rounds
            settings=wandb.Settings(**QUIET, finish_timeout=PATIENCE, finish_timeout_raises=True),
        )

        if not self.run.offline:
            self.where = self.run.url or ""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=round)
        files.write(self.mark, str(round))

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)
