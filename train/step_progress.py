"""What a training with a loop of its own tells the world: the run folder's files, a bar with the time left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from train.progress import Alarm, clock
from train.run import Run

log = logging.getLogger(__name__)


class StepProgress:
    """One row of metrics a step, the status and a bar."""

    def __init__(self, run: Run, *, first_step: int, total: int, shown: Sequence[str], quiet: bool = False) -> None:
        """`shown`: the measures that a line of the log names."""
        self.run = run
        self.first_step = first_step
        self.total = total
        self._shown = shown
        self._quiet = quiet
        self._began = time.monotonic()
        run.update(step=first_step, total_steps=total)
        # In a log file the rows take the bar's place.
        self._bar = tqdm(total=total, initial=first_step, unit="step", file=sys.stderr, disable=quiet or None)

    def row(self, row: Mapping[str, float], alarm: Alarm | None = None) -> None:
        """Write a row down, with what the alarm says of it."""
        step = int(row["step"])
        message = alarm.observe(row) if alarm else self.run.status.message
        self.run.record({**row, "alarm": 1.0} if alarm and message else row)
        left = (time.monotonic() - self._began) / max(step - self.first_step, 1) * (self.total - step)
        self.run.update(step=step, eta_s=round(left, 1), message=message)
        self._bar.update(step - self._bar.n)
        if self._quiet:
            return
        words = " ".join(f"{name} {row[name]:.4g}" for name in self._shown if name in row)
        if self._bar.disable:
            log.info("step %d/%d  %s  %s left", step, self.total, words, clock(left))
        else:
            self._bar.set_postfix_str(words)

    def close(self) -> None:
        """The loop is over."""
        self._bar.close()
