"""What training a policy on rankings minimises and measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.groups import Group, bar_tensors, length_tensor
from train.health import Health
from train.layouts import Batch, Layout, collate, log_probs, parts, to_device
from train.policy_losses import PolicyLoss
from train.preference_measures import Sums
from train.processes import summed
from train.reference import ReferenceLogProbs, keys


class PreferenceObjective:
    """A `PolicyLoss` over the responses' log-probs. `latest`: the last evaluation, as it stands in eval.json.

    The reference is asked also where the loss needs none: what became more or less likely is only seen against it. In
    training it is then asked only if somebody `watches`.
    """

    def __init__(
        self,
        loss: PolicyLoss,
        layout: Layout,
        *,
        reference: ReferenceLogProbs,
        held_out: Sequence[Group] = (),
        health: Health | None = None,
        watches: bool = True,
    ) -> None:
        self.layout = layout
        self.reference = reference
        self.latest: dict[str, Any] | None = None
        self._loss = loss
        self._held_out = held_out
        self._health = health
        self._asks = watches or loss.needs_reference
        self._sums = Sums()

    def collate(self, groups: Sequence[Group]) -> Batch:
        """One pass over some groups."""
        batch = {
            **collate(self.layout, groups),
            "lengths": length_tensor(groups),
            "keys": keys(groups),
            **bar_tensors(groups),
        }
        others = [g.mismatched for g in groups if g.mismatched is not None]
        return {**batch, "mismatched": self.collate(others)} if others else batch

    def begin(self, model: nn.Module, passes: Sequence[Batch]) -> None:
        """Give each pass its reference log-probs and, for KTO, the step's z0."""
        if self._asks:
            self._ask_reference(model, passes)
        if self._loss.loss == "kto":
            own = self._mismatched(model, passes)
            total, count = summed(torch.stack([own.double().sum(), torch.tensor(float(len(own)))]))
            _set_baseline(passes, total / count)
        self.reference.share()

    def _ask_reference(self, model: nn.Module, passes: Sequence[Batch]) -> None:
        for batch in passes:
            batch["reference"] = self.reference.of(model, batch)

    @torch.no_grad()
    def _mismatched(self, model: nn.Module, passes: Sequence[Batch]) -> Tensor:
        """Log ratios of responses to prompts they do not belong to, in nats, shape (R,), on the CPU.

        KTO's z0 is their mean, at least 0. Source: Ethayarajh et al. 2024, section 4.1.
        """
        found = [torch.zeros(0)]
        for batch in passes:
            own = log_probs(model, batch["mismatched"])
            found.append((own - _as(self.reference.of(model, batch["mismatched"]), own)).cpu())
        return torch.cat(found)

    def weight(self, batch: Batch) -> Tensor:
        """The weight of the pass's comparisons, its number of rankings, or of judged responses."""
        return self._loss.weight(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The weighted sum over the pass."""
        found = log_probs(model, batch)
        batch = with_reference(batch, found)
        self._sums.add(found.detach(), batch, rewards=self._loss.rewards(found.detach(), batch))
        return self._loss(found, batch)

    def measured(self) -> dict[str, float]:
        """What the responses of the steps since this was asked last came to, in all processes."""
        row, self._sums = self._sums.everywhere().row(), Sums()
        return row

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """The same on the held-out groups, with their loss, and what the policy writes by itself."""
        training = model.training
        model.eval()
        sums, total, weight = Sums(start=True), 0.0, 0.0
        for batch in self._passes(next(model.parameters()).device):
            self._ask_reference(model, [batch])
            if self._loss.loss == "kto":  # one pass as its own step
                _set_baseline([batch], self._mismatched(model, [batch]).mean())
            found = log_probs(model, batch)
            batch = with_reference(batch, found)
            sums.add(found, batch, rewards=self._loss.rewards(found, batch))
            total += float(self._loss(found, batch))
            weight += float(self._loss.weight(batch))
        row = {"loss": total / weight, **sums.row()} if weight else sums.row()
        self.latest = {"prompts": len(self._held_out), **sums.counts(), **row}
        if self._health is not None:
            row |= self._health.measure(model, self.layout)
        model.train(training)
        return {name: value for name, value in row.items() if isinstance(value, int | float)}

    def _passes(self, device: torch.device) -> Iterator[Batch]:
        order = sorted(self._held_out, key=lambda g: max(map(len, g.rows)))
        for numbers in parts(self.layout, order):
            yield to_device(self.collate([order[n] for n in numbers]), device)


def with_reference(batch: Batch, found: Tensor) -> Batch:
    """The batch with its reference log-probs, if it has some, of the type and at the place of `found`."""
    return {**batch, "reference": _as(batch["reference"], found)} if "reference" in batch else batch


def _set_baseline(passes: Sequence[Batch], mean: Tensor) -> None:
    for batch in passes:
        batch["baseline"] = mean.clamp(min=0).to(dtype=torch.float32, device=batch["lengths"].device)


def _as(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.to(dtype=like.dtype).to(like.device)
