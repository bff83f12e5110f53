"""What is known of a step's responses before anything is learned from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import BadInput
from train.advantages import Moments, gae, grpo, rloo, token_rewards, whiten
from train.kl_penalty import estimate
from train.layouts import Layout
from train.ppo_config import PpoConfig
from train.processes import summed
from train.reward_sources import Scorer
from train.roles import Role, Roles
from train.rollouts import Rollouts

log = logging.getLogger(__name__)

MAX_TOKEN_KL = 10.0
"""Nats at which a token's penalty ends: one token must not drown a step's rewards."""


class Diverged(BadInput):
    """What was learned is of no use any more."""


@dataclass(frozen=True)
class Scored:
    """What the models say of R responses of up to T tokens. Shapes (R, T), 0 after a response's end; on the CPU.

    `scores`, shape (R,), as they came; log-probs in nats.
    """

    mask: Tensor
    scores: Tensor
    log_probs: Tensor
    reference: Tensor
    entropies: Tensor
    values: Tensor | None


@dataclass(frozen=True)
class Experience:
    """What is learned from. Shapes (R, T), 0 after a response's end; on the CPU.

    `rewards`: each token's, the score included. `returns`: what the critic learns, None without one.
    """

    kl: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor | None


@torch.no_grad()
def score_rollouts(roles: Roles, rollouts: Rollouts, scorer: Scorer, *, layout: Layout, autocast: bool) -> Scored:
    """Ask every role about every response."""
    roles.model.eval()
    mask = rollouts.mask()
    log_probs, entropies, reference, values = (torch.zeros(mask.shape) for _ in range(4))
    roles_asked: list[Role] = ["actor", "reference", *(["critic"] if roles.has_critic else [])]  # type: ignore[list-item]
    for role in roles_asked:
        with roles.played(role), torch.autocast(roles.device.type, torch.bfloat16, enabled=autocast):
            for row in rollouts.rows(layout, roles.device):
                at = row.responses, row.positions
                if role == "critic":
                    values[at] = roles.values(row.inputs).float().cpu()
                elif role == "reference":
                    reference[at] = roles.log_probs(row.inputs).float().cpu()
                else:
                    found = roles.log_probs_and_entropies(row.inputs, entropy_gradient=False)
                    log_probs[at], entropies[at] = (f.float().cpu() for f in found)
    return Scored(mask, scorer.score(rollouts), log_probs, reference, entropies, values if roles.has_critic else None)


def experience_of(config: PpoConfig, rollouts: Rollouts, scored: Scored, *, kl_coef: float) -> Experience:
    """Rewards, advantages and returns of a step's responses."""
    mask = scored.mask
    kl = torch.where(mask, estimate(config.kl_estimator, scored.log_probs, scored.reference), 0.0)
    kl = kl.clamp(-MAX_TOKEN_KL, MAX_TOKEN_KL)
    finished = torch.tensor([s.finished for s in rollouts.flat])
    scores = scored.scores - config.missing_eos_penalty * (~finished).float()
    rewards = token_rewards(scores, kl, mask, kl_coef=kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, moments=_everywhere(rewards, mask), shift=False)
    if scored.values is None:
        totals = rewards.sum(dim=1).reshape(-1, rollouts.per_prompt)
        own = (rloo(totals) if config.advantage == "rloo" else grpo(totals)).flatten()
        return Experience(kl, rewards, torch.where(mask, own[:, None], 0.0), None)
    advantages = gae(rewards, scored.values, mask, gamma=config.gamma, lam=config.lam)
    returns = torch.where(mask, advantages + scored.values, 0.0)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask, moments=_everywhere(advantages, mask))
    return Experience(kl, rewards, advantages, returns)


def _everywhere(values: Tensor, mask: Tensor) -> Moments:
    """Over all processes."""
    own = Moments.of(values, mask)
    count, total, squares = summed(torch.tensor([own.count, own.total, own.squares], dtype=torch.float64)).tolist()
    return Moments(count, total, squares)


def warn_of_endless(rollouts: Rollouts) -> None:
    """Say where no response has an end of its own: a score at the last token then means little."""
    finished = float(sum(s.finished for s in rollouts.flat))
    if not summed(torch.tensor(finished)):
        log.warning(
            "step 1: no response ended within %d tokens. Raise --max_new_tokens, or teach the model to end: "
            "python -m train sft",
            int(rollouts.lengths().max()),
        )


def check_written(rollouts: Rollouts, *, step: int) -> None:
    """Raises Diverged where not one response has a word in it: there is nothing left to learn from."""
    written = sum(bool(s.text.strip()) for s in rollouts.flat)
    if not summed(torch.tensor(float(written))):
        raise Diverged(
            f"step {step}: all {len(rollouts.flat)} responses are empty; the policy ends at once. Continue from an "
            "earlier checkpoint with a lower --learning_rate or a higher --kl_coef."
        )
