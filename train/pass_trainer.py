"""The library's Trainer on prompt groups: a step is several passes of bounded size, one gradient."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState

from data.errors import BadInput
from train.checkpoints import damage, new_checkpoint
from train.groups import Group
from train.interrupt import Interrupt
from train.layouts import Batch, Layout, parts
from train.processes import copy_from_main, is_main, on_main, rank, sum_gradients, summed, world_size
from train.step_batches import Batches, GroupBatches, OwnShare, TokenBatches

PROMPTS = "prompt_ids"
"""In a batch: which prompts it is of."""
_SHOWN = 8
"""Prompts that a sentence names."""


class Objective(Protocol):
    """What a stage minimises: sums over passes that add up to the step's, and what is measured on the way."""

    layout: Layout

    def collate(self, groups: Sequence[Group]) -> Batch:
        """One pass over some groups."""

    def begin(self, model: nn.Module, passes: Sequence[Batch]) -> None:
        """Add to the passes of a step what must be known before the first of them is computed; all processes at once,
        also one that has no pass."""

    def weight(self, batch: Batch) -> Tensor:
        """What this pass adds to the number that the step's sum is divided by; a scalar."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum over this pass, a scalar."""

    def measured(self) -> dict[str, float]:
        """What the losses saw since this was asked last, in all processes, for the log."""

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Plain numbers on the held-out groups, for the log."""


class PassTrainer(Trainer):
    """Trainer with an `Objective`; all else is the library's.

    A step's groups are computed in passes of at most `layout.tokens_per_forward` tokens. The loss is a sum divided by
    the step's total weight, which is known before any pass: so each pass can run its own backward, and their gradients
    add up to that of the whole step, whatever process they are computed in.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        evaluates: bool,
        interrupt: Interrupt,
        tokens_per_batch: int = 0,
        **options: Any,
    ) -> None:
        # The trainer asks for a dataset before it agrees to evaluate; the objective knows the groups.
        super().__init__(data_collator=self._collate, eval_dataset=cast(Any, [0]) if evaluates else None, **options)
        self.objective: Objective = objective
        self.interrupt = interrupt
        self.tokens_per_batch = tokens_per_batch
        self._speed = _Speed()
        self._evaluated_at = -1
        self._prompts: list[str] = []
        self._trained = [p for p in cast(nn.Module, self.model).parameters() if p.requires_grad]
        copy_from_main(self._trained)
        if world_size() > 1:
            # The library's wrapper for several processes averages gradients after each backward pass, of which a step
            # has more in one process than in another; ours are summed once a step.
            accelerator: Any = self.accelerator
            accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)

    def _collate(self, groups: Sequence[Group]) -> dict[str, Any]:
        """A step: its passes."""
        passes = [[groups[i] for i in numbers] for numbers in parts(self.objective.layout, groups)]
        return {"passes": [{**self.objective.collate(part), PROMPTS: [g.prompt_id for g in part]} for part in passes]}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps of so many groups, or of so many tokens."""
        groups = cast(Sequence[Group], self.train_dataset)
        sizes = [self.objective.layout.tokens([g]) for g in groups]
        together = self.args.per_device_train_batch_size * world_size()
        steps: Batches = GroupBatches(len(groups), together, seed=self.args.seed)
        if self.tokens_per_batch:
            steps = TokenBatches(sizes, self.tokens_per_batch, seed=self.args.seed)
        own = OwnShare(steps, sizes, rank=rank(), world_size=world_size())
        loader = DataLoader(cast(Any, groups), batch_sampler=cast(Any, own), collate_fn=self._collate)
        # As if there were one process: what is each one's own has been decided.
        found = prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)
        return cast(DataLoader[Any], found)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of every pass; returns the step's loss. Gradient and loss are those of all processes."""
        model.train()
        step: dict[str, Any] = self._prepare_inputs(inputs)
        self._prompts = [name for part in step["passes"] for name in part[PROMPTS]]
        with self.compute_loss_context_manager():
            self.objective.begin(model, step["passes"])
        own = sum(float(self.objective.weight(part)) for part in step["passes"])
        weight = float(summed(torch.tensor(own, dtype=torch.float64)))
        total = torch.zeros((), device=self.args.device)
        while step["passes"]:
            part = step["passes"].pop(0)  # let go of each pass when it is done
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) / weight
            self._check_finite("loss", loss, part[PROMPTS])
            self.accelerator.backward(loss)
            total += loss.detach()
        sum_gradients(self._trained)
        return summed(total)

    def compute_loss(self, model: nn.Module, inputs: Batch, *unused: Any, **also_unused: Any) -> Tensor:
        """The objective's sum over one pass."""
        self._speed.tokens += inputs["tokens"]
        return self.objective.loss(model, inputs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, looked at before the step is applied: weights of a checkpoint are always numbers."""
        found = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self._check_finite("gradient's norm", torch.as_tensor(found), self._prompts)
        return found

    def _check_finite(self, what: str, value: Tensor, prompts: Sequence[str]) -> None:
        if not torch.isfinite(value):
            shown = ", ".join(prompts[:_SHOWN]) + (f" and {len(prompts) - _SHOWN} more" if prompts[_SHOWN:] else "")
            raise BadInput(
                f"step {self.state.global_step + 1}: the {what} is {value.item()}, computed from the prompts {shown}; "
                "training cannot go on from there. Lower --learning_rate, leave out --bf16, or look at these prompts."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last row."""
        if "loss" in logs:
            tokens = float(summed(torch.tensor(self._speed.tokens)))
            logs = {**logs, **self._speed.row(tokens), **self.objective.measured()}
            self._speed = _Speed()
        super().log(logs, start_time)

    def evaluate(self, *unused: Any, **also_unused: Any) -> dict[str, Any]:
        """Evaluate on the held-out groups; the numbers are logged once a step, with `eval_` before their names."""
        self.interrupt.release()  # the step is complete, and this may take long
        with self.compute_loss_context_manager():
            # The main process alone: whatever keeps what was found is asked there.
            found = on_main(lambda: dict(self.objective.evaluate(cast(nn.Module, self.model))))
        self.interrupt.hold()
        if self._evaluated_at != self.state.global_step:
            self._evaluated_at = self.state.global_step
            self.log({f"eval_{name}": value for name, value in found.items()})
        self._speed.restart_clock()
        return found

    def store_flos(self) -> None:
        """The library adds them up over the processes, also where the main one saves alone; nobody asks for them."""

    def take_up(self, checkpoint: Path) -> None:
        """Weights and step of a checkpoint, without a further step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def save_now(self) -> None:
        """A checkpoint of the last completed step."""
        if self.state.global_step:
            self._save_checkpoint(cast(nn.Module, self.model), trial=None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The library's files, then the seal; by the main process alone, so that a stop needs no other."""
        if not is_main():
            return
        folder = Path(cast(str, self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if not damage(folder):  # of this very step: stopped before another was complete
            return
        with new_checkpoint(folder):
            super()._save_checkpoint(model, trial)


class _Speed:
    """Tokens and seconds since the last logged row."""

    def __init__(self) -> None:
        self.tokens = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.since = time.monotonic()

    def row(self, tokens: float) -> dict[str, float]:
        """`tokens`: those of all processes."""
        seconds = time.monotonic() - self.since
        return {"seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds, 1)}
