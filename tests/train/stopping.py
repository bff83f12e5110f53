"""A training that is asked to stop in the middle of a step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor

from train.pass_trainer import PassTrainer
from train.ppo_update import Learner


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """SIGTERM in a forward pass after `step` completed steps."""
    original = PassTrainer.compute_loss

    def compute_loss(trainer: PassTrainer, *args: Any, **options: Any) -> Tensor:
        if trainer.state.global_step == step:
            os.kill(os.getpid(), 15)
        return original(trainer, *args, **options)

    with patch.object(PassTrainer, "compute_loss", compute_loss):
        yield


@contextmanager
def ppo_stopped_at(step: int) -> Iterator[None]:
    """SIGTERM in an update, after the first optimiser step of it and `step` complete steps."""
    original = Learner._step

    def apply(learner: Learner, *args: Any, **options: Any) -> None:
        original(learner, *args, **options)
        if options["step"] == step + 1:
            os.kill(os.getpid(), 15)

    with patch.object(Learner, "_step", apply):
        yield
