"""TensorBoard event files in `<run>/tensorboard/`; to look at them: `tensorboard --logdir runs`.

A resumed run writes its events anew, from the metrics that it kept, so that no step is there twice
and none of a round that was undone.
"""

import shutil
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from fedlora.tracking import tracker


class Tracker(tracker.Tracker):
    def __init__(self, facts: tracker.Facts) -> None:
        folder = facts.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        # Not SummaryWriter, which writes in a thread of its own: a full disk is to be heard of.
        self.writer = EventsWriter(str(folder / "events"))
        self.start = time.time() if facts.timeless else None
        start = SessionLog(status=SessionLog.START)  # a TensorBoard that runs drops what it has
        self.writer.write_event(Event(session_log=start, step=0, wall_time=self._time(0)))
        *begin, self.end = hparams({**facts.tags, **facts.settings}, {"round/score": 0})
        for summary in begin:
            self._write(summary, 0)
        self.writer.flush()

    def log(self, round: int, values: Mapping[str, float]) -> None:
        points = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._write(Summary(value=points), round)
        self.writer.flush()

    def close(self, done: bool) -> None:
        if done:
            self._write(self.end, 0)
        self.writer.close()

    def _write(self, summary: Summary, round: int) -> None:
        self.writer.write_event(Event(summary=summary, step=round, wall_time=self._time(round)))

    def _time(self, round: int) -> float:
        """Now; or, where that is a secret, as if each round took a second."""
        return time.time() if self.start is None else self.start + round
