"""The pairwise loss against its derivation.

With d = s_chosen - s_rejected and label q, the loss of one comparison is l(d) = -q log s(d) - (1 - q) log s(-d), where
s(x) = 1 / (1 + exp(-x)). Since log s(x) = -log(1 + exp(-x)) and d/dx log s(x) = s(-x):

    l(d) = q log(1 + exp(-d)) + (1 - q) log(1 + exp(d)),      l'(d) = s(d) - q.

A batch is the average by weight, so the gradient of comparison i by its chosen score is w_i (s(d_i) - q_i) / sum w.
"""

from __future__ import annotations

import math

import pytest
import torch

from train.losses import pairwise_loss

SCORES = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64)
CHOSEN, REJECTED = torch.tensor([0, 2, 3]), torch.tensor([1, 0, 2])
PREFERENCE = torch.tensor([1.0, 0.5, 0.8], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, 0.25, 2.0], dtype=torch.float64)


def loss_of(scores: torch.Tensor) -> torch.Tensor:
    return pairwise_loss(scores[CHOSEN], scores[REJECTED], preference=PREFERENCE, weight=WEIGHT)


def test_it_is_the_weighted_mean_of_the_derived_formula() -> None:
    total = 0.0
    for a, b, q, w in zip(CHOSEN, REJECTED, PREFERENCE.tolist(), WEIGHT.tolist(), strict=True):
        d = float(SCORES[a] - SCORES[b])
        total += w * (q * math.log(1 + math.exp(-d)) + (1 - q) * math.log(1 + math.exp(d)))
    assert loss_of(SCORES).item() == pytest.approx(total / 3.25, abs=1e-14)


def test_its_gradient_is_the_derived_one() -> None:
    scores = SCORES.clone().requires_grad_()
    loss_of(scores).backward()
    expected = torch.zeros(4, dtype=torch.float64)
    for a, b, q, w in zip(CHOSEN, REJECTED, PREFERENCE, WEIGHT, strict=True):
        slope = w * (torch.sigmoid(SCORES[a] - SCORES[b]) - q) / WEIGHT.sum()
        expected[a] += slope
        expected[b] -= slope
    torch.testing.assert_close(scores.grad, expected, rtol=0, atol=1e-14)


def test_equal_scores_cost_log_2_whatever_the_label() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    assert pairwise_loss(zeros, zeros, preference=PREFERENCE, weight=WEIGHT).item() == pytest.approx(math.log(2))


def test_a_tie_pulls_the_two_scores_together() -> None:
    scores = torch.tensor([1.0, -1.0], requires_grad=True)
    pairwise_loss(scores[:1], scores[1:], preference=torch.tensor([0.5]), weight=torch.tensor([1.0])).backward()
    assert scores.grad is not None
    assert scores.grad[0] > 0 > scores.grad[1]


def test_swapping_both_sides_and_the_label_changes_nothing() -> None:
    a, b = SCORES[CHOSEN], SCORES[REJECTED]
    swapped = pairwise_loss(b, a, preference=1 - PREFERENCE, weight=WEIGHT)
    torch.testing.assert_close(loss_of(SCORES), swapped, rtol=0, atol=1e-15)


def test_scaling_all_weights_changes_nothing() -> None:
    a, b = SCORES[CHOSEN], SCORES[REJECTED]
    torch.testing.assert_close(pairwise_loss(a, b, preference=PREFERENCE, weight=7 * WEIGHT), loss_of(SCORES))


def test_huge_differences_stay_finite_and_half_precision_is_computed_in_float32() -> None:
    far = torch.tensor([1e4], dtype=torch.float64, requires_grad=True)
    loss = pairwise_loss(-far, far, preference=torch.ones(1), weight=torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(far.grad).all()  # type: ignore[arg-type]
    half = torch.tensor([0.5], dtype=torch.bfloat16)
    assert pairwise_loss(half, -half, preference=torch.ones(1), weight=torch.ones(1)).dtype == torch.float32
