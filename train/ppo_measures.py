"""What a step of PPO is measured by, over all processes, and what it hands to the inspection files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from train.experience import Experience, Scored
from train.kl_penalty import k1
from train.ppo_losses import explained_variance
from train.processes import gathered
from train.rollout_files import token_texts
from train.rollouts import Rollouts, repetition


@dataclass(frozen=True)
class Answers:
    """Facts about the responses of all processes, one number a response."""

    rewards: Sequence[float]
    gold: Sequence[float]
    """Empty without a second judge."""
    kl: Sequence[float]
    """Log ratio to the reference, nats a response: its mean estimates the divergence without bias (k1)."""
    tokens: Sequence[int]
    """EOS included."""
    prompt_tokens: int
    finished: Sequence[bool]
    empty: Sequence[bool]
    repetitions: Sequence[float]

    @classmethod
    def of(cls, rollouts: Rollouts, scored: Scored, *, gold: Tensor | None) -> Answers:
        """This process's, joined with the others'."""
        flat = rollouts.flat
        log_ratio = torch.where(scored.mask, k1(scored.log_probs, scored.reference), 0.0).sum(dim=1)
        own = {
            "rewards": scored.scores.tolist(),
            "gold": [] if gold is None else gold.tolist(),
            "kl": log_ratio.tolist(),
            "tokens": [len(s.ids) for s in flat],
            "finished": [s.finished for s in flat],
            "empty": [not s.text for s in flat],
            "repetitions": [repetition(s.ids) for s in flat],
        }
        everyone = gathered([own])
        joined = {name: [value for one in everyone for value in one[name]] for name in own}
        prompts = sum(gathered([sum(len(p.ids) for p in rollouts.prompts)]))
        return cls(prompt_tokens=prompts, **joined)

    @property
    def count(self) -> int:
        """Responses."""
        return len(self.rewards)

    @property
    def mean_kl(self) -> float:
        """Nats a response."""
        return fmean(self.kl)

    def row(self) -> dict[str, float]:
        """What is true of the responses, whatever is learned from them."""
        gold = {"gold": fmean(self.gold), "gold_std": pstdev(self.gold)} if self.gold else {}
        return {
            "reward": fmean(self.rewards),
            "reward_std": pstdev(self.rewards),
            **gold,
            "kl": self.mean_kl,
            "kl_per_token": sum(self.kl) / sum(self.tokens),
            "finished": fmean(self.finished),
            "empty": fmean(self.empty),
            "responses": float(self.count),
            "tokens": fmean(self.tokens),
            "repetition": fmean(self.repetitions),
            **self._by_length(),
        }

    def _by_length(self) -> dict[str, float]:
        """Rewards of the shorter and of the longer half, and how much length and reward go together."""
        order = sorted(range(self.count), key=lambda i: self.tokens[i])
        half = self.count // 2
        if not half or self.tokens[order[0]] == self.tokens[order[-1]]:
            return {}
        halves = order[:half], order[-half:]
        short, long = (fmean(self.rewards[i] for i in part) for part in halves)
        found = {"reward_short": short, "reward_long": long}
        if pstdev(self.rewards) > 0:
            found["reward_length_corr"] = float(np.corrcoef(self.tokens, self.rewards)[0, 1])
        return found

    def speed(self, *, rollout_s: float, scoring_s: float, update_s: float, passes: int) -> dict[str, float]:
        """Tokens a second: written, read by all roles once, and learned from, prompts computed once."""
        written, whole = sum(self.tokens), sum(self.tokens) + self.prompt_tokens
        seconds = rollout_s + scoring_s + update_s
        return {
            "rollout_tokens_per_s": round(written / rollout_s, 1),
            "scoring_tokens_per_s": round(whole / scoring_s, 1),
            "update_tokens_per_s": round(whole * max(passes, 1) / update_s, 1),
            "tokens_per_s": round(written / seconds, 1),
            "seconds": round(seconds, 3),
        }


def variance_explained(experience: Experience, scored: Scored) -> dict[str, float]:
    """How much of the returns the critic foresaw; nothing without a critic."""
    if experience.returns is None or scored.values is None:
        return {}
    own = scored.values[scored.mask].tolist(), experience.returns[scored.mask].tolist()
    everyone = gathered([own])
    values, returns = (torch.tensor([v for one in everyone for v in one[n]]) for n in (0, 1))
    return {"explained_variance": explained_variance(values, returns)}


def token_columns(
    rollouts: Rollouts,
    scored: Scored,
    experience: Experience,
    *,
    ratios: Tensor,
    gold: Tensor | None,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, list[Any]]:
    """The inspection file's columns, one row a token of all processes' responses."""
    flat, mask = rollouts.flat, scored.mask
    owners = [(p.record.id, s) for p, own in zip(rollouts.prompts, rollouts.samples, strict=True) for s in own]
    lengths = [len(s.ids) for s in flat]

    def repeated(values: Sequence[Any]) -> list[Any]:
        return [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    own: dict[str, list[Any]] = {
        "prompt_id": repeated([prompt_id for prompt_id, _ in owners]),
        "text": [text for s in flat for text in token_texts(decode, s.ids)],
        "token_id": [i for s in flat for i in s.ids],
        "log_prob": scored.log_probs[mask].tolist(),
        "reference_log_prob": scored.reference[mask].tolist(),
        "kl": experience.kl[mask].tolist(),
        "reward": experience.rewards[mask].tolist(),
        "value": [None] * sum(lengths) if scored.values is None else scored.values[mask].tolist(),
        "return": [None] * sum(lengths) if experience.returns is None else experience.returns[mask].tolist(),
        "advantage": experience.advantages[mask].tolist(),
        "ratio": ratios[mask].tolist(),
        "mask": [True] * sum(lengths),
        "score": repeated(scored.scores.tolist()),
        "gold": repeated([None] * len(flat) if gold is None else gold.tolist()),
        "finished": repeated([s.finished for s in flat]),
        "response": repeated(range(len(flat))),
    }
    everyone = gathered([own])
    columns: dict[str, list[Any]] = {name: [] for name in own}
    before = 0
    for one in everyone:
        for name, values in one.items():
            columns[name] += [n + before for n in values] if name == "response" else values
        before = columns["response"][-1] + 1
    return columns


def prompt_messages_of(rollouts: Rollouts) -> list[list[dict[str, str]]]:
    """The prompts of all processes as messages, in order."""
    return gathered([[{"role": m.role, "content": m.content} for m in p.record.prompt] for p in rollouts.prompts])


def eval_row(found: Mapping[str, float]) -> dict[str, float]:
    """The measures of held-out responses under their names in the metrics."""
    names = ("reward", "gold", "kl", "kl_per_token", "finished", "tokens", "repetition", "empty")
    return {f"eval_{name}": found[name] for name in names if name in found}
