"""What each token of a response earned, and how much better that was than expected. Pure functions of tensors.

Shapes: R responses, T tokens of the longest, B prompts with K responses each. Tensors of shape (R, T) are padded on the
right; `mask` (R, T), bool, is True at response tokens. What stands outside the mask counts nowhere, not even nan, and
is 0 in every result. Half-precision tensors are computed, and come back, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """-kl_coef kl at each token, plus the response's score at its last one. Shapes: scores (R,), the rest (R, T).

    A response without a token has nowhere to put its score.
    Source: Ziegler et al. 2019, equation 2, whose sum over tokens is dealt out to them as in its code.
    """
    left = mask.flip(1).cumsum(1).flip(1)  # tokens from here to the end
    score = torch.where(mask & (left == 1), _wide(scores)[:, None], 0.0)
    return torch.where(mask, -kl_coef * _wide(kl), 0.0) + score


def returns_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """The sum over l >= 0 of gamma^l rewards[t + l]. Shapes: all (R, T)."""
    return _discounted(torch.where(mask, _wide(rewards), 0.0), mask, decay=gamma)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """The sum over l >= 0 of (gamma lam)^l delta[t + l]; delta[t] = r[t] + gamma v[t + 1] - v[t]. Shapes: all (R, T).

    The value after a response's last token is 0, whether it ended by itself or was cut.
    Source: Schulman et al. 2016, equation 16.
    """
    now = torch.where(mask, _wide(values), 0.0)
    later = torch.cat([now[:, 1:], torch.zeros_like(now[:, :1])], dim=1)
    return _discounted(torch.where(mask, _wide(rewards) + gamma * later - now, 0.0), mask, decay=gamma * lam)


def rloo(totals: Tensor) -> Tensor:
    """Each response's total reward less the mean of the others to its prompt. Shapes: both (B, K), K at least 2.

    Source: Ahmadian et al. 2024 (RLOO), as x - (sum - x) / (K - 1) = (x - mean) K / (K - 1).
    """
    samples = totals.shape[1]
    assert samples > 1
    return _centred(totals) * (samples / (samples - 1))


def grpo(totals: Tensor, *, eps: float = 1e-4) -> Tensor:
    """(total - mean) / (std + eps) over a prompt's responses. Shapes: both (B, K), K at least 2.

    `std` divides by K - 1. The paper writes "std" and does not say by which; torch.std of TRL's and verl's GRPO does.
    `eps`: TRL's; where all responses earned the same the result is 0.
    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2.
    """
    samples = totals.shape[1]
    assert samples > 1
    centred = _centred(totals)
    return centred / ((centred.square().sum(1, keepdim=True) / (samples - 1)).sqrt() + eps)


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of numbers: what the parts of a batch, or several processes, add up to."""

    count: float
    total: float
    squares: float

    @classmethod
    def of(cls, values: Tensor, mask: Tensor) -> Moments:
        """Of the values inside the mask, summed in float64. Shapes: both (R, T)."""
        own = values.detach()[mask].double()
        return cls(float(own.numel()), float(own.sum()), float(own.square().sum()))

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """0 of no numbers."""
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Of the population; 0 of no numbers."""
        if not self.count:
            return 0.0
        found = self.squares / self.count - self.mean**2
        return 0.0 if found < 0 else found  # below 0 by rounding; nan stays nan

    @property
    def std(self) -> float:
        """Of the population."""
        return math.sqrt(self.variance)


def whiten(values: Tensor, mask: Tensor, *, moments: Moments, shift: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8), plus the mean again where not `shift`. Shapes: all (R, T).

    `moments`: of the whole batch, which the values may be a part of.
    Source: `whiten` of Ziegler et al. 2019's code, with their population variance.
    """
    white = (_wide(values) - moments.mean) / math.sqrt(moments.variance + 1e-8)
    return torch.where(mask, white if shift else white + moments.mean, 0.0)


def _discounted(terms: Tensor, mask: Tensor, *, decay: float) -> Tensor:
    """The sum over l >= 0 of decay^l terms[t + l], of terms that are 0 outside the mask."""
    sums = torch.zeros_like(terms)
    ahead = terms.new_zeros(len(terms))
    for t in reversed(range(terms.shape[1])):
        ahead = terms[:, t] + decay * ahead
        sums[:, t] = ahead
    return torch.where(mask, sums, 0.0)


def _centred(totals: Tensor) -> Tensor:
    """Less their mean, exactly 0 where a prompt's totals are equal: the mean of equal numbers may be rounded off them,
    and `grpo` divides by as little as eps."""
    lead = _wide(totals) - _wide(totals[:, :1])
    return lead - lead.mean(1, keepdim=True)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
