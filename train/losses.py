"""The losses, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def pairwise_loss(chosen: Tensor, rejected: Tensor, *, preference: Tensor, weight: Tensor) -> Tensor:
    """Bradley-Terry cross-entropy with soft labels, averaged by weight; a scalar, in nats.

    With difference d = chosen - rejected and label q: -q log s(d) - (1 - q) log s(-d), s the logistic function.
    q = 1 is the usual pairwise loss, q = 0.5 a tie: smallest at d = 0.

    Shapes: all four (P,), one entry a comparison; scores in any float type, computed in at least float32.
    Source: Ouyang et al. 2022 (InstructGPT), equation 1: with weight 1/C(K,2) per comparison, the mean over prompts.
    """
    difference = chosen - rejected
    if difference.dtype in (torch.float16, torch.bfloat16):
        difference = difference.float()
    each = -preference * logsigmoid(difference) - (1 - preference) * logsigmoid(-difference)
    return (weight * each).sum() / weight.sum()
