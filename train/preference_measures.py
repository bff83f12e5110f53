"""What a policy's log-probs say about its training, summed up response by response and comparison by comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train.layouts import Batch
from train.processes import gathered


class Sums:
    """Sums over passes. Strict comparisons count alike, each with its chosen and its rejected response; where a loss
    learns from the acceptable bar, the responses before it stand as chosen and those behind it as rejected.
    """

    def __init__(self, *, start: bool = False) -> None:
        """`start`: also measure what the reference itself would choose by its log-probs."""
        self._start = start
        self._sums: dict[str, float] = {}
        self._pairs = self._ties = self._responses = 0
        self._sides = {"chosen": 0, "rejected": 0}

    def add(self, found: Tensor, batch: Batch, *, rewards: Tensor) -> None:
        """One pass. Shapes: `found` (log-probs) and `rewards` (implicit), both (R,)."""
        strict = batch["preference"] > 0.5
        chosen, rejected = batch["chosen"][strict], batch["rejected"][strict]
        self._responses += len(found)
        self._pairs += len(chosen)
        self._ties += len(strict) - len(chosen)
        gaps = rewards[chosen] - rewards[rejected]
        self._add("accuracy", _wins(gaps))
        self._add("margin", gaps)
        if self._start and "reference" in batch:
            per_token = batch["reference"] / batch["lengths"]
            self._add("start_accuracy", _wins(batch["reference"][chosen] - batch["reference"][rejected]))
            self._add("start_accuracy_per_token", _wins(per_token[chosen] - per_token[rejected]))
        if "baseline" in batch:
            judged, liked = batch["judged"] > 0, batch["acceptable"] > 0.5
            chosen, rejected = torch.where(judged & liked)[0], torch.where(judged & ~liked)[0]
        for side, places in (("chosen", chosen), ("rejected", rejected)):
            self._add_side(side, found, batch, places)

    def _add_side(self, side: str, found: Tensor, batch: Batch, places: Tensor) -> None:
        self._sides[side] += len(places)
        self._add(f"{side}_logps", found[places])
        if "reference" in batch:
            ratio = found - batch["reference"]
            self._add(f"{side}_log_ratio", ratio[places])
            self._add(f"{side}_log_ratio_per_token", (ratio / batch["lengths"])[places])

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())

    def everywhere(self) -> Sums:
        """Over all processes."""
        found = Sums(start=self._start)
        mine: Any = [self._sums, self._pairs, self._ties, self._responses, self._sides]
        for own in gathered([mine]):
            sums, pairs, ties, responses, sides = own
            for name, value in sums.items():
                found._sums[name] = found._sums.get(name, 0.0) + value
            for name, count in sides.items():
                found._sides[name] += count
            found._pairs += pairs
            found._ties += ties
            found._responses += responses
        return found

    def counts(self) -> dict[str, int]:
        """How much was measured."""
        return {"responses": self._responses, "pairs": self._pairs, "ties": self._ties}

    def row(self) -> dict[str, Any]:
        """Means; what there was none of is left out. Log-probs and ratios in nats, a response or a token."""
        means = {}
        for name, value in self._sums.items():
            count = self._sides.get(name.partition("_")[0], self._pairs)
            if count:
                means[name] = value / count
        return means


def _wins(gaps: Tensor) -> Tensor:
    return (gaps > 0).float() + 0.5 * (gaps == 0).float()
