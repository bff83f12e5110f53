"""`python -m tests.train.failing_process HOW STEP STAGE …`: a training in which the second process fails at a step.

HOW: mistake, error, or killed. STEP: completed steps before.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from torch import Tensor

from data.errors import BadInput
from train.__main__ import main
from train.pass_trainer import PassTrainer
from train.processes import rank


def fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise BadInput("shelf 3: the book is gone. Bring it back.") if how == "mistake" else ZeroDivisionError("a bug")


if __name__ == "__main__":
    how, step, *arguments = sys.argv[1:]
    original = PassTrainer.compute_loss

    def compute_loss(trainer: PassTrainer, *args: Any, **options: Any) -> Tensor:
        if rank() == 1 and trainer.state.global_step == int(step):
            fail(how)
        return original(trainer, *args, **options)

    PassTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    sys.exit(main(arguments))
