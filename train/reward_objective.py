"""What a reward model's training minimises and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.evaluation import Evaluation
from train.groups import Group
from train.layouts import Batch, Layout, collate, scores
from train.losses import RewardLoss
from train.processes import summed


class RewardObjective:
    """A `RewardLoss` over the responses' rewards. `latest`: the last evaluation on `held_out`."""

    def __init__(self, loss: RewardLoss, layout: Layout, *, held_out: Sequence[Group] = ()) -> None:
        self.layout = layout
        self.scale = 1.0
        """What turns a difference of rewards into a logit; changes where the rewards are normalized."""
        self.latest: Evaluation | None = None
        self._loss = loss
        self._held_out = held_out
        self._window = _Window()

    def collate(self, groups: Sequence[Group]) -> Batch:
        """One pass over some groups."""
        return collate(self.layout, groups)

    def begin(self, model: nn.Module, passes: Sequence[Batch]) -> None:
        """Nothing: a comparison's loss depends on its own two responses alone."""

    def weight(self, batch: Batch) -> Tensor:
        """The weight of the pass's comparisons, or its number of rankings."""
        return self._loss.weight(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The weighted sum over the pass."""
        found = scores(model, batch)
        self._window.add(found.detach(), batch)
        return self._loss(found, batch)

    def measured(self) -> dict[str, float]:
        """Accuracy and margin of the strict comparisons since this was asked last, in all processes."""
        row, self._window = self._window.everywhere().row(), _Window()
        return row

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Score the held-out responses; differences of rewards in logits, one curve before and after normalizing."""
        self.latest = Evaluation.of(model, self._held_out, self.layout, scale=self.scale)
        return _logged(self.latest.found, scale=self.scale)


class _Window:
    """Sums since the last logged row."""

    def __init__(self) -> None:
        self.wins = self.strict = self.margin = 0.0

    def add(self, found: Tensor, batch: Batch) -> None:
        gaps = (found[batch["chosen"]] - found[batch["rejected"]])[batch["preference"] > 0.5]
        self.wins += float((gaps > 0).sum()) + 0.5 * float((gaps == 0).sum())
        self.strict += len(gaps)
        self.margin += float(gaps.sum())

    def everywhere(self) -> _Window:
        """Over all processes."""
        found = _Window()
        own = torch.tensor([self.wins, self.strict, self.margin], dtype=torch.float64)
        found.wins, found.strict, found.margin = summed(own).tolist()
        return found

    def row(self) -> dict[str, float]:
        if not self.strict:
            return {}
        return {"accuracy": self.wins / self.strict, "margin": self.margin / self.strict}


def _logged(found: Mapping[str, Any], *, scale: float) -> dict[str, float]:
    """The plain numbers."""
    numbers = {k: v for k, v in found.items() if isinstance(v, int | float) and not k.startswith("reward_")}
    return {k: v * scale if k in ("margin", "tie_gap", "tie_threshold") else v for k, v in numbers.items()}
