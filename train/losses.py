"""The losses of the reward model, as pure functions of tensors. All in nats, computed in at least float32.

Shapes: P comparisons, M places in rankings (a response is listed once in each ranking that ranks it), R rankings.
Labels of a comparison: `preference`, the probability that `chosen` is better, a tie counting half; `tie`, the share of
ties. So `chosen` wins with preference - tie/2 and loses with 1 - preference - tie/2. s is the logistic function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(difference: Tensor, *, preference: Tensor) -> Tensor:
    """Cross-entropy of each comparison: -q log s(d) - (1 - q) log s(-d), q the preference. Shapes: all (P,).

    q = 1 is the usual pairwise loss, q = 0.5 a tie: smallest at d = 0.
    Source: Bradley and Terry 1952; as a loss of rewards, Ouyang et al. 2022 (InstructGPT), equation 1.
    """
    d = _wide(difference)
    return -preference * logsigmoid(d) - (1 - preference) * logsigmoid(-d)


def davidson(difference: Tensor, *, preference: Tensor, tie: Tensor, strength: float) -> Tensor:
    """Cross-entropy of win, loss and tie, whose probabilities are as e^(d/2) : e^(-d/2) : nu. Shapes: all (P,).

    `strength`: nu, above 0; equal responses tie with probability nu / (2 + nu).
    Source: Davidson 1970: a tie is as likely as nu times the geometric mean of the two worths.
    """
    d, log_nu = _wide(difference), math.log(strength)
    # Each -log P is log(1 + the sum of the other two over this one): exact where P is close to 1.
    win = _softplus(torch.logaddexp(-d, log_nu - d / 2))
    loss = _softplus(torch.logaddexp(d, log_nu + d / 2))
    equal = _softplus(torch.logaddexp(d / 2, -d / 2) - log_nu)
    return (preference - tie / 2) * win + (1 - preference - tie / 2) * loss + tie * equal


def rao_kupper(difference: Tensor, *, preference: Tensor, tie: Tensor, strength: float) -> Tensor:
    """Cross-entropy of win s(d - h), loss s(-d - h) and tie, the rest; h = log theta. Shapes: all (P,).

    `strength`: theta - 1, above 0: differences under h are too small to notice. P(tie) is
    (theta^2 - 1) s(d - h) s(-d - h), and strength / (2 + strength) between equal responses.
    Source: Rao and Kupper 1967.
    """
    d, threshold = _wide(difference), math.log1p(strength)
    win, loss = -logsigmoid(d - threshold), -logsigmoid(-d - threshold)
    constant = math.log(strength) + math.log(strength + 2)  # log(theta^2 - 1), exact for small strengths too
    return (preference + tie / 2) * win + (1 - preference + tie / 2) * loss - tie * constant


def plackett_luce(scores: Tensor, *, listed: Tensor, tier: Tensor, ranking: Tensor) -> Tensor:
    """Cross-entropy of each ranking as a sequence of choices, divided by its listed responses less one. Shape (R,).

    `listed`, `tier`, `ranking`, each (M,): index into `scores`; tier number, 0 is best; ranking number, 0 to R - 1.
    Each ranking lists two responses or more; unranked responses are not listed.

    Each response is chosen by softmax among those of its ranking in its own tier or below. The last tier, of t
    responses, is scaled by (t - 1)/t: the last of a strict ranking is no choice, and two tied responses alone are
    Bradley-Terry with label one half. Two responses are Bradley-Terry; K > 2 weigh no more than they.
    Source: Luce 1959, Plackett 1975; ties as Breslow 1974 has them: each tied item against all that are left.
    """
    own = _wide(scores)[listed]
    together = ranking[:, None] == ranking
    below = together & (tier > tier[:, None])
    level = together & (tier == tier[:, None])
    leads = (own - own[:, None]).masked_fill(~(below | level), -math.inf)
    size = level.sum(1).to(own.dtype)
    scale = torch.where(below.any(1), 1.0, (size - 1) / size) / (together.sum(1) - 1)
    return own.new_zeros(_count(ranking)).index_add(0, ranking, scale * leads.logsumexp(1))


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(chosen + rejected)^2, which holds the two around 0: comparisons alone leave the level open. Shapes: all (P,).

    Source: Eisenstein et al. 2023 ("Helping or Herding?").
    """
    return (_wide(chosen) + _wide(rejected)).square()


def pairwise_loss(chosen: Tensor, rejected: Tensor, *, preference: Tensor, weight: Tensor) -> Tensor:
    """`bradley_terry` averaged by weight; a scalar. Shapes: all four (P,).

    Source: Ouyang et al. 2022 (InstructGPT), equation 1: with weight 1/C(K,2) per comparison, the mean over prompts.
    """
    each = bradley_terry(_wide(chosen) - _wide(rejected), preference=preference)
    return (weight * each).sum() / weight.sum()


@dataclass(frozen=True)
class RewardLoss:
    """What training minimises, as a sum and as the weight to divide it by; both add up over the parts of a batch.

    A batch has, each (P,), `chosen` and `rejected` (indices into the scores), `preference`, `tie`, `margin` and
    `weight`; for plackett_luce, each (M,), `listed`, `tier` and `ranking`.
    """

    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """Over comparisons, each by its weight; or over rankings, each weighing 1, which knows none of the next four."""
    ties: Literal["half", "davidson", "rao_kupper", "drop"] = "half"
    """`drop` counts the votes that are no ties: weight (1 - tie), and the preference among them."""
    tie_strength: float = 1.0
    """Davidson's nu, or Rao and Kupper's theta - 1."""
    label_smoothing: float = 0.0
    """Share of the wins and losses believed to be flipped; ties stay ties."""
    margin: float = 0.0
    """Taken from a difference for each tier between the two (Touvron et al. 2023, equation 2)."""
    center_rewards_coefficient: float = 0.0
    """Weight of `centering`, over the comparisons under either loss."""

    def __call__(self, scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum over the batch, a scalar; 0, with gradients of 0, where nothing counts."""
        scores = _wide(scores)
        if self.loss == "plackett_luce":
            places = {name: batch[name] for name in ("listed", "tier", "ranking")}
            total = plackett_luce(scores, **places).sum()
        else:
            total = (self._weights(batch) * self._each(scores, batch)).sum()
        if self.center_rewards_coefficient:
            squares = centering(scores[batch["chosen"]], scores[batch["rejected"]])
            total = total + self.center_rewards_coefficient * (self._weights(batch) * squares).sum()
        return total

    def weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the sum is divided by for the mean: the weights that count, or the number of rankings; a scalar."""
        if self.loss == "plackett_luce":
            return torch.tensor(float(_count(batch["ranking"])), device=batch["ranking"].device)
        return self._weights(batch).sum()

    def _weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["weight"] * (1 - batch["tie"]) if self.ties == "drop" else batch["weight"]

    def _each(self, scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of each comparison, before weights. Shape (P,)."""
        difference = scores[batch["chosen"]] - scores[batch["rejected"]] - self.margin * batch["margin"]
        preference, tie = batch["preference"], batch["tie"]
        if self.ties == "drop":
            preference = torch.where(tie < 1, (preference - tie / 2) / (1 - tie), preference)
        # In shares: win and loss swap a part e of each, so that their sum, hence the tie's share, stays.
        preference = preference * (1 - self.label_smoothing) + (1 - preference) * self.label_smoothing
        if self.ties == "davidson":
            return davidson(difference, preference=preference, tie=tie, strength=self.tie_strength)
        if self.ties == "rao_kupper":
            return rao_kupper(difference, preference=preference, tie=tie, strength=self.tie_strength)
        return bradley_terry(difference, preference=preference)


def _wide(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact everywhere; the library's own cuts to x above 20, which is off by 2e-9."""
    return -logsigmoid(-x)


def _count(ranking: Tensor) -> int:
    """The number of rankings that are numbered 0 to R - 1."""
    return int(ranking.max()) + 1 if len(ranking) else 0
