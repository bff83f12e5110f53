"""The library's Trainer on prompt groups: a step is several passes of bounded size, one gradient."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from data.errors import BadInput
from train.evaluation import Evaluation
from train.groups import Group
from train.interrupt import Interrupt
from train.layouts import Batch, Layout, collate, parts, scores
from train.losses import RewardLoss


class RewardTrainer(Trainer):
    """Trainer with a loss over prompt groups; all else is the library's.

    A step's groups are computed in passes of at most `layout.tokens_per_forward` tokens. The loss is a weighted sum
    over comparisons divided by the step's total weight, which is known before any pass: so each pass can run its own
    backward, and their gradients add up to that of the whole step.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        objective: RewardLoss,
        held_out: Sequence[Group],
        interrupt: Interrupt,
        tokens_per_batch: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(data_collator=self._collate, eval_dataset=held_out or None, **options)
        self.layout: Layout = layout
        self.objective: RewardLoss = objective
        self.held_out = held_out
        self.interrupt = interrupt
        self.tokens_per_batch = tokens_per_batch
        self._window = _Window()
        self._evaluated_at = -1

    def _collate(self, groups: Sequence[Group]) -> dict[str, Any]:
        """A step: its passes."""
        passes = [[groups[i] for i in numbers] for numbers in parts(self.layout, groups)]
        return {"passes": [collate(self.layout, part) for part in passes]}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps of so many prompts, or of so many tokens."""
        if not self.tokens_per_batch:
            return super().get_train_dataloader()
        groups = cast(Sequence[Group], self.train_dataset)
        steps = TokenBatches([self.layout.tokens([g]) for g in groups], self.tokens_per_batch, seed=self.args.seed)
        loader = DataLoader(cast(Any, groups), batch_sampler=steps, collate_fn=self._collate)
        return cast(DataLoader[Any], self.accelerator.prepare(loader))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of every pass; returns the step's loss."""
        model.train()
        step: dict[str, Any] = self._prepare_inputs(inputs)
        weight = sum(self.objective.weight(part) for part in step["passes"])
        total = torch.zeros((), device=self.args.device)
        while step["passes"]:
            part = step["passes"].pop(0)  # let go of each pass when it is done
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) / weight
            self._check_finite(loss)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def compute_loss(self, model: nn.Module, inputs: Batch, *unused: Any, **also_unused: Any) -> Tensor:
        """The objective's sum over one pass."""
        found = scores(model, inputs)
        self._window.add(found.detach(), inputs)
        return self.objective(found, inputs)

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise BadInput(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}; training cannot go on from there. "
                "Lower --learning_rate, or leave out --bf16."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last row."""
        if "loss" in logs:
            logs = {**logs, **self._window.row()}
            self._window = _Window()
        super().log(logs, start_time)

    def evaluate(self, *unused: Any, **also_unused: Any) -> dict[str, Any]:
        """Evaluate on the held-out groups, as the trainer asks every so many steps."""
        return dict(self.evaluation().found)

    def evaluation(self, *, scale: float = 1.0) -> Evaluation:
        """Evaluate on the held-out groups; the numbers are logged once a step, with `eval_` before their names.

        `scale`: what turns a difference of rewards into a logit.
        """
        self.interrupt.release()  # the step is complete, and this may take long
        made = Evaluation.of(cast(nn.Module, self.model), self.held_out, self.layout, scale=scale)
        self.interrupt.hold()
        if self._evaluated_at != self.state.global_step:
            self._evaluated_at = self.state.global_step
            self.log({f"eval_{name}": v for name, v in _logged(made.found, scale=scale).items()})
        self._window.restart_clock()
        return made

    def save_now(self) -> None:
        """A checkpoint of the last completed step."""
        if self.state.global_step:
            self._save_checkpoint(cast(nn.Module, self.model), trial=None)


class TokenBatches:
    """Batches of at most `tokens` tokens (one prompt at least): filled once, their order drawn anew each epoch.

    Filled once, so that every epoch has the same number of steps and a resumed run meets the same batches.
    """

    def __init__(self, sizes: Sequence[int], tokens: int, *, seed: int) -> None:
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
        self._batches: list[list[int]] = []
        spent = tokens
        for i in order:
            if not self._batches or spent + sizes[i] > tokens:
                self._batches.append([])
                spent = 0
            self._batches[-1].append(i)
            spent += sizes[i]
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.Generator().manual_seed(self._seed + 1 + self._epoch)
        yield from (self._batches[i] for i in torch.randperm(len(self._batches), generator=order).tolist())


class _Window:
    """Sums since the last logged row."""

    def __init__(self) -> None:
        self.wins = self.strict = self.margin = self.tokens = self.seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.since = time.monotonic()

    def add(self, found: Tensor, batch: Batch) -> None:
        gaps = (found[batch["chosen"]] - found[batch["rejected"]])[batch["preference"] > 0.5]
        self.wins += float((gaps > 0).sum()) + 0.5 * float((gaps == 0).sum())
        self.strict += len(gaps)
        self.margin += float(gaps.sum())
        self.tokens += batch["tokens"]

    def row(self) -> dict[str, float]:
        """What goes into the log."""
        seconds = time.monotonic() - self.since
        row = {"seconds": round(seconds, 3), "tokens_per_s": round(self.tokens / seconds, 1)}
        if self.strict:
            row |= {"accuracy": self.wins / self.strict, "margin": self.margin / self.strict}
        return row


def _logged(found: Mapping[str, Any], *, scale: float) -> dict[str, float]:
    """The plain numbers, differences of rewards in logits: one curve before and after the rewards are normalized."""
    numbers = {k: v for k, v in found.items() if isinstance(v, int | float) and not k.startswith("reward_")}
    return {k: v * scale if k in ("margin", "tie_gap", "tie_threshold") else v for k, v in numbers.items()}
