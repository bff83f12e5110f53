"""What a training tells the world while it runs: the run folder's files, a bar with the time left, safe points."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.interrupt import Interrupt
from train.run import Run

log = logging.getLogger(__name__)


class Alarm(Protocol):
    """Looks at each row of metrics, and may ask for the end."""

    @property
    def asks_to_stop(self) -> bool:
        """Whether the training is to end now, as if this step were its last."""

    def observe(self, row: Mapping[str, float]) -> str:
        """What is wrong, in a sentence; empty while all is well."""


class RunProgress(TrainerCallback):
    """Writes `metrics.jsonl` and `status.json`, shows the bar, and holds off signals while a step is being applied."""

    def __init__(self, run: Run, interrupt: Interrupt, alarm: Alarm | None = None) -> None:
        self.run = run
        self.interrupt = interrupt
        self.alarm = alarm
        self.bar: Any = None
        self.began = time.monotonic()
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self.began, self.first_step = time.monotonic(), state.global_step
        self.run.update(step=state.global_step, total_steps=state.max_steps)
        # In a log file the rows of `on_log` take the bar's place.
        quiet = self.run.follows or None
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", file=sys.stderr, disable=quiet)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self.interrupt.release()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self.interrupt.hold()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        self.bar.update(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self.bar.close()
        self.interrupt.release()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **unused: Any,
    ) -> None:
        if not logs or "train_runtime" in logs:  # the trainer's own summary
            return
        row = {"step": state.global_step, **logs}
        message = self._warn(row, control)
        self.run.record({**row, "displacement": 1.0} if message else row)
        eta_s = self._eta_s(state)
        self.run.update(step=state.global_step, eta_s=eta_s, message=message)
        if self.bar is None or self.bar.disable:
            log.info("step %d/%d  %s  %s left", state.global_step, state.max_steps, _words(logs), clock(eta_s))
        else:
            self.bar.set_postfix_str(_words(logs))

    def _warn(self, row: Mapping[str, float], control: TrainerControl) -> str:
        """What the alarm says of a row; the training ends where it asks for that."""
        if self.alarm is None:
            return ""
        message = self.alarm.observe(row)
        control.should_training_stop = control.should_training_stop or self.alarm.asks_to_stop
        return message

    def _eta_s(self, state: TrainerState) -> float:
        done = state.global_step - self.first_step
        left = state.max_steps - state.global_step
        return round((time.monotonic() - self.began) / max(done, 1) * left, 1)


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    return str(tqdm.format_interval(seconds))


def _words(logs: dict[str, float]) -> str:
    shown = ("loss", "accuracy", "chosen_log_ratio", "eval_loss", "eval_accuracy", "eval_kl", "tokens_per_s")
    return " ".join(f"{name} {logs[name]:.4g}" for name in shown if logs.get(name) is not None)
