"""The alarms for reward hacking: the reward keeps rising while what it stands for does not.

A reward model is right only near what it was trained on. A policy that is rewarded for long enough finds where it is
wrong: far from the reference, in longer or repeated text, where another judge disagrees. Source: Gao et al. 2023
(Scaling laws for reward model overoptimization); Singhal et al. 2023 (A long way to go: length).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from statistics import fmean

log = logging.getLogger(__name__)

ROWS = 8
"""Steps whose mean is judged: one step's prompts say little."""
LEAST_ROWS = 4
"""No judgement before so many."""
_RISE = 0.5
"""The reward has risen once it is so many of its first standard deviations above its start."""
_LONGER = 1.5
"""Lengths have exploded at so many times their start."""
_REPEATED = 0.2
"""Repetitions have exploded once so many more of the four-token runs came before."""
_GOLD_LOSS = 0.25
"""Gold has fallen once its mean is so many standard deviations below its best."""
_SURE = 4.0
"""Standard errors of the difference of two means that chance does not reach: the best of many is one by luck."""
_REMEDY = "Raise --kl_coef or set --kl_target, take fewer steps, or use an earlier checkpoint."

Row = Mapping[str, float]


class HackingAlarm:
    """Watches the rows of metrics. `message` is set from the step on at which the alarm went off, `step`."""

    def __init__(self, threshold: float, *, stops: bool = False) -> None:
        """`threshold`: nats a response that the policy may be from the reference; 0 turns all alarms off."""
        self.threshold = threshold
        self.step: int | None = None
        self.message = ""
        self._stops = stops
        self._first: list[Row] = []
        self._recent: deque[Row] = deque(maxlen=ROWS)
        self._best_gold: tuple[float, float] | None = None

    @property
    def asks_to_stop(self) -> bool:
        """Whether the training is to end here."""
        return self._stops and self.step is not None

    def observe(self, row: Row) -> str:
        """Look at one row of metrics, in order; returns the message, empty while all is well."""
        if not self.threshold or "kl" not in row:
            return self.message
        if len(self._first) < LEAST_ROWS:
            self._first.append(row)
        self._recent.append(row)
        if len(self._recent) < LEAST_ROWS or self.step is not None:
            return self.message
        found = self._too_far() or self._longer() or self._repeating() or self._gold_falls()
        if found:
            self.step = int(row["step"])
            self.message = f"over-optimisation: at step {self.step} {found}. {_REMEDY}"
            log.warning("%s", self.message)
        return self.message

    def _now(self, name: str) -> float:
        return fmean(row[name] for row in self._recent)

    def _start(self, name: str) -> float:
        return fmean(row[name] for row in self._first)

    def _rise(self) -> float:
        """Of the reward, in its first standard deviations."""
        return (self._now("reward") - self._start("reward")) / max(self._start("reward_std"), 1e-6)

    def _too_far(self) -> str:
        kl = self._now("kl")
        if kl <= self.threshold:
            return ""
        return f"the policy is {kl:.3g} nats a response from the reference (the alarm is set to {self.threshold:g})"

    def _longer(self) -> str:
        before, now = self._start("tokens"), self._now("tokens")
        if self._rise() < _RISE or now < _LONGER * before:
            return ""
        grew = f"responses grew from {before:.0f} to {now:.0f} tokens"
        return f"the reward has risen by {self._rise():.2g} deviations while {grew}"

    def _repeating(self) -> str:
        before, now = self._start("repetition"), self._now("repetition")
        if self._rise() < _RISE or now < before + _REPEATED:
            return ""
        return (
            f"the reward has risen by {self._rise():.2g} deviations while repetitions grew from {before:.0%} to "
            f"{now:.0%} of the text"
        )

    def _gold_falls(self) -> str:
        if "gold" not in self._recent[-1]:
            return ""
        reward, gold = self._now("reward"), self._now("gold")
        if self._best_gold is None or gold > self._best_gold[0]:
            self._best_gold = gold, reward
        best, reward_then = self._best_gold
        noise = _SURE * (2 / sum(row.get("responses", 1) for row in self._recent)) ** 0.5
        fall = (best - gold) / max(self._start("gold_std"), 1e-6)
        rise = (reward - reward_then) / max(self._start("reward_std"), 1e-6)
        if fall < max(_GOLD_LOSS, noise) or rise < noise / 2:
            return ""
        went = f"from {reward_then:.3g} to {reward:.3g}"
        return f"gold has fallen from {best:.3g} to {gold:.3g} while the reward went {went}"
