"""The part of a PPO step that learns: several passes over the step's responses, in minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import BadInput
from train.experience import Diverged, Experience, Scored
from train.layouts import Layout
from train.ppo_config import PpoConfig
from train.ppo_losses import policy_loss, value_loss
from train.processes import rank, sum_gradients, summed, world_size
from train.roles import Roles
from train.rollouts import Rollouts, Row

RATIO_TOLERANCE = 1e-3
BF16_RATIO_TOLERANCE = 5e-2
"""In bfloat16 the same log-prob differs in the second digit with what is computed beside it."""


@dataclass
class Sums:
    """What the losses saw, as sums over tokens; `tokens` are counted once a pass."""

    tokens: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    values_clipped: float = 0.0
    approx_kl: float = 0.0
    grad_norm: float = 0.0
    critic_grad_norm: float = 0.0
    optimizer_steps: int = 0
    passes: int = 0

    def measured(self, config: PpoConfig, *, critic: bool) -> dict[str, float]:
        """Means for the log."""
        tokens, steps = max(self.tokens, 1.0), max(self.optimizer_steps, 1)
        value = self.value_loss / tokens
        entropy = self.entropy / tokens
        found = {
            "loss": self.policy_loss / tokens
            + (config.vf_coef * value if critic else 0)
            - config.entropy_coef * entropy,
            "policy_loss": self.policy_loss / tokens,
            "entropy": entropy,
            "clip_fraction": self.clipped / tokens,
            "approx_kl": self.approx_kl / tokens,
            "grad_norm": self.grad_norm / steps,
            "passes": float(self.passes),
        }
        if not critic:
            return found
        clipped = self.values_clipped / tokens
        return found | {
            "value_loss": value,
            "value_clip_fraction": clipped,
            "critic_grad_norm": self.critic_grad_norm / steps,
        }


class Learner:
    """Applies a step's experience to actor and critic."""

    def __init__(self, config: PpoConfig, roles: Roles, optimizer: torch.optim.Optimizer, *, layout: Layout) -> None:
        self.config = config
        self.roles = roles
        self.optimizer = optimizer
        self.layout = layout
        self.ratio_checked = False

    def learn(
        self, rollouts: Rollouts, scored: Scored, experience: Experience, *, step: int, actor_rests: bool
    ) -> tuple[Sums, Tensor]:
        """All passes; returns what was seen, and each token's ratio in the last pass over it, shape (R, T).

        `actor_rests`: the critic learns alone. Raises Diverged where a loss is not finite.
        """
        sums, ratios = Sums(), torch.ones(scored.mask.shape)
        self.roles.model.train()
        for epoch in range(self.config.num_ppo_epochs):
            for numbers in self._minibatches(len(rollouts.groups), step=step, epoch=epoch):
                rows = list(rollouts.rows(self.layout, self.roles.device, numbers=numbers))
                before = sums.approx_kl, sums.tokens
                self._gradients(rows, scored, experience, sums=sums, ratios=ratios, actor_rests=actor_rests)
                if not self.ratio_checked:
                    self._check_ratio(rows, ratios)
                if self._too_far(sums, before):
                    self.optimizer.zero_grad(set_to_none=True)
                    return self._everywhere(sums), ratios
                self._step(sums, rollouts, numbers=numbers, step=step)
            sums.passes += 1
        return self._everywhere(sums), ratios

    def _minibatches(self, prompts: int, *, step: int, epoch: int) -> Iterator[list[int]]:
        """This process's part of each minibatch: the prompts of all processes are dealt out in one order."""
        chance = torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) * 1_009 + epoch)
        order = torch.randperm(prompts * world_size(), generator=chance)
        first = rank() * prompts
        for part in order.tensor_split(self.config.num_mini_batches):
            yield sorted(n - first for n in part.tolist() if first <= n < first + prompts)

    def _gradients(
        self,
        rows: Sequence[Row],
        scored: Scored,
        experience: Experience,
        *,
        sums: Sums,
        ratios: Tensor,
        actor_rests: bool,
    ) -> None:
        """Forward and backward of one minibatch: the actor over all its rows, then the critic."""
        tokens = float(summed(torch.tensor(float(sum(len(r.positions) for r in rows)), dtype=torch.float64)))
        for row in rows:
            self._actor(row, scored, experience, sums=sums, ratios=ratios, tokens=tokens, rests=actor_rests)
        if experience.returns is not None:
            with self.roles.played("critic"):
                for row in rows:
                    self._critic(row, scored, experience, sums=sums, tokens=tokens)

    def _actor(
        self,
        row: Row,
        scored: Scored,
        experience: Experience,
        *,
        sums: Sums,
        ratios: Tensor,
        tokens: float,
        rests: bool,
    ) -> None:
        at = row.responses, row.positions
        config, device = self.config, self.roles.device
        with torch.set_grad_enabled(not rests), self._autocast():
            log_probs, entropies = self.roles.log_probs_and_entropies(
                row.inputs, entropy_gradient=bool(config.entropy_coef)
            )
            terms = policy_loss(
                log_probs,
                scored.log_probs[at].to(device),
                experience.advantages[at].to(device),
                cliprange=config.cliprange,
            )
            loss = terms.loss - config.entropy_coef * entropies.sum()
        if not rests:
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
        ratios[at] = terms.ratio.detach().float().cpu()
        sums.tokens += len(row.positions)
        sums.policy_loss += float(terms.loss.detach())
        sums.entropy += float(entropies.detach().sum())
        sums.clipped += float(terms.clip_fraction)
        sums.approx_kl += float(terms.approx_kl)

    def _critic(self, row: Row, scored: Scored, experience: Experience, *, sums: Sums, tokens: float) -> None:
        assert scored.values is not None and experience.returns is not None
        at, device = (row.responses, row.positions), self.roles.device
        with self._autocast():
            values = self.roles.values(row.inputs)
            terms = value_loss(
                values,
                scored.values[at].to(device),
                experience.returns[at].to(device),
                cliprange_value=self.config.cliprange_value,
            )
        (self.config.vf_coef * terms.loss / tokens).backward()  # type: ignore[no-untyped-call]
        sums.value_loss += float(terms.loss.detach())
        sums.values_clipped += float(terms.clip_fraction)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.roles.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _too_far(self, sums: Sums, before: tuple[float, float]) -> bool:
        """Whether this minibatch's policy has left the one that wrote the responses, and the passes end here."""
        if not self.config.target_kl:
            return False
        own = torch.tensor([sums.approx_kl - before[0], sums.tokens - before[1]], dtype=torch.float64)
        divergence, tokens = summed(own).tolist()
        return bool(divergence / max(tokens, 1) > self.config.target_kl)

    def _step(self, sums: Sums, rollouts: Rollouts, *, numbers: Sequence[int], step: int) -> None:
        groups = [group["params"] for group in self.optimizer.param_groups]
        sum_gradients([p for group in groups for p in group])
        # Each by itself: the actor's gradient is far larger, and would take the critic's down with it.
        norms = [torch.nn.utils.clip_grad_norm_(group, self.config.max_grad_norm or float("inf")) for group in groups]
        if not all(map(torch.isfinite, norms)):
            ids = ", ".join(rollouts.prompts[n].record.id for n in numbers[:5])
            raise Diverged(
                f"step {step}: the loss is not finite, with the prompts {ids}; training cannot go on from there. Lower "
                "--learning_rate, or leave out --bf16."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sums.grad_norm += float(norms[0])
        sums.critic_grad_norm += float(norms[-1])
        sums.optimizer_steps += 1

    def _check_ratio(self, rows: Sequence[Row], ratios: Tensor) -> None:
        """Before anything was learned, new and old probabilities are the same. Raises BadInput where they are not."""
        self.ratio_checked = True
        worst = max((float((ratios[r.responses, r.positions] - 1).abs().max()) for r in rows), default=0.0)
        allowed = BF16_RATIO_TOLERANCE if self.config.bf16 else RATIO_TOLERANCE
        if not worst <= allowed:
            raise BadInput(
                f"--model {self.config.model}: before the first update the ratio of new to old probabilities is off by "
                f"{worst:.2g} ({allowed:g} allowed): this model does not compute the same twice. Try --packing padded, "
                "or leave out --bf16."
            )

    @staticmethod
    def _everywhere(sums: Sums) -> Sums:
        """Over all processes."""
        names = ("tokens", "policy_loss", "value_loss", "entropy", "clipped", "values_clipped", "approx_kl")
        found = summed(torch.tensor([getattr(sums, name) for name in names], dtype=torch.float64)).tolist()
        for name, value in zip(names, found, strict=True):
            setattr(sums, name, value)
        return sums
