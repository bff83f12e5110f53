"""PPO's losses and their gradients against cases worked out by hand, c being the clip's range.

Policy, per token, with ratio r = e^(new - old) and advantage A: the objective of Schulman et al. 2017, equation 7, is
min(A r, A clip(r)); the loss is its negative, and dr/d new = r:

A > 0: -A r           up to r = 1 + c, gradient -A r;   -A (1 + c) above, gradient 0.
A < 0: -A (1 - c)     below r = 1 - c, gradient 0;      -A r from there on, gradient -A r.

Value, per token, with v, old and the return R: max((v - R)^2, (clip(v) - R)^2) / 2. The gradient is v - R, or 0 where
the clipped value's error is the larger one, for that does not depend on v.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train import kl_penalty
from train.advantages import Moments, gae, token_rewards, whiten
from train.ppo_losses import explained_variance, policy_loss, value_loss

EXACT = {"rtol": 1e-12, "atol": 1e-12}
NUMBERS = st.floats(-3, 3, allow_subnormal=False)
TOKENS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8)


def columns(tokens: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = torch.tensor(tokens, dtype=torch.float64).unbind(1)
    return first, second, third


def policy_by_hand(new: float, old: float, advantage: float, c: float) -> tuple[float, float, int]:
    """Loss, gradient by the new log-prob, and whether the clip binds."""
    ratio = math.exp(new - old)
    if advantage > 0 and ratio > 1 + c:
        return -advantage * (1 + c), 0.0, 1
    if advantage < 0 and ratio < 1 - c:
        return -advantage * (1 - c), 0.0, 1
    return -advantage * ratio, -advantage * ratio, 0


def value_by_hand(value: float, old: float, target: float, c: float) -> tuple[float, float, int]:
    """Loss, gradient by the value, and whether the clip binds."""
    clipped = min(max(value, old - c), old + c) if c else value
    if abs(clipped - target) > abs(value - target):
        return (clipped - target) ** 2 / 2, 0.0, 1
    return (value - target) ** 2 / 2, value - target, 0


def gradient_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


POLICY_CASES = [  # A, r, loss, gradient, binds; c = 0.2
    (2.0, 0.5, -1.0, -1.0, 0),  # the wrong way: whole
    (2.0, 0.8, -1.6, -1.6, 0),
    (2.0, 0.9, -1.8, -1.8, 0),
    (2.0, 1.0, -2.0, -2.0, 0),
    (2.0, 1.1, -2.2, -2.2, 0),
    (2.0, 1.5, -2.4, 0.0, 1),  # far enough
    (-2.0, 0.5, 1.6, 0.0, 1),  # far enough
    (-2.0, 0.9, 1.8, 1.8, 0),
    (-2.0, 1.0, 2.0, 2.0, 0),
    (-2.0, 1.1, 2.2, 2.2, 0),
    (-2.0, 1.2, 2.4, 2.4, 0),
    (-2.0, 1.5, 3.0, 3.0, 0),  # the wrong way: whole
    (0.0, 0.5, 0.0, 0.0, 0),
    (0.0, 1.5, 0.0, 0.0, 0),
]


@pytest.mark.parametrize(("advantage", "ratio", "loss", "gradient", "binds"), POLICY_CASES)
def test_the_policy_loss_case_by_case(advantage: float, ratio: float, loss: float, gradient: float, binds: int) -> None:
    old = torch.tensor([-1.7], dtype=torch.float64)
    new = old + math.log(ratio)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    terms = policy_loss(new, old, advantages, cliprange=0.2)
    assert float(terms.loss) == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert float(terms.ratio) == pytest.approx(ratio, rel=1e-12)
    assert float(terms.clip_fraction) == binds
    found = gradient_of(lambda x: policy_loss(x, old, advantages, cliprange=0.2).loss, new)
    assert float(found) == pytest.approx(gradient, rel=1e-12, abs=1e-12)


VALUE_CASES = [  # v, R, loss, gradient, binds; old = 1, c = 0.2
    (1.5, 3.0, 1.62, 0.0, 1),  # up, towards a return above: far enough
    (1.5, 0.0, 1.125, 1.5, 0),  # up, away from it: whole
    (0.5, 0.0, 0.32, 0.0, 1),  # down, towards a return below: far enough
    (0.5, 3.0, 3.125, -2.5, 0),  # down, away from it: whole
    (1.1, 3.0, 1.805, -1.9, 0),
    (0.9, 3.0, 2.205, -2.1, 0),
    (1.1, 0.0, 0.605, 1.1, 0),
    (0.9, 0.0, 0.405, 0.9, 0),
    (1.5, 1.4, 0.02, 0.0, 1),  # past the return, but nearer to it than the clipped value
    (1.5, 1.3, 0.02, 0.2, 0),  # further past it
    (1.0, 1.0, 0.0, 0.0, 0),
]


@pytest.mark.parametrize(("value", "target", "loss", "gradient", "binds"), VALUE_CASES)
def test_the_value_loss_case_by_case(value: float, target: float, loss: float, gradient: float, binds: int) -> None:
    values, old, returns = (torch.tensor([x], dtype=torch.float64) for x in (value, 1.0, target))
    terms = value_loss(values, old, returns, cliprange_value=0.2)
    assert float(terms.loss) == pytest.approx(loss, rel=1e-12, abs=1e-12)
    assert float(terms.clip_fraction) == binds
    found = gradient_of(lambda x: value_loss(x, old, returns, cliprange_value=0.2).loss, values)
    assert float(found) == pytest.approx(gradient, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(TOKENS, st.floats(0.05, 0.9))
def test_the_policy_loss_is_the_sum_over_tokens_and_so_is_its_gradient(
    tokens: list[tuple[float, float, float]], c: float
) -> None:
    new, old, advantages = columns(tokens)
    expected = [policy_by_hand(*token, c) for token in tokens]
    terms = policy_loss(new, old, advantages, cliprange=c)
    assert float(terms.loss) == pytest.approx(sum(e[0] for e in expected), rel=1e-12, abs=1e-12)
    assert float(terms.clip_fraction) == sum(e[2] for e in expected)
    found = gradient_of(lambda x: policy_loss(x, old, advantages, cliprange=c).loss, new)
    torch.testing.assert_close(found, torch.tensor([e[1] for e in expected], dtype=torch.float64), **EXACT)
    kl = sum(math.exp(n - o) - 1 - (n - o) for n, o, _ in tokens)
    assert float(terms.approx_kl) == pytest.approx(kl, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(TOKENS, st.sampled_from([0.0, 0.2, 1.0]))
def test_the_value_loss_is_the_sum_over_tokens_and_so_is_its_gradient(
    tokens: list[tuple[float, float, float]], c: float
) -> None:
    values, old, returns = columns(tokens)
    # Beside the edge of the max the two errors are equal but for rounding, and either side is right.
    edges = [(min(max(v, o - c), o + c), v, r) for v, o, r in tokens] if c else []
    near = [abs(abs(x - r) - abs(v - r)) < 1e-9 and x != v for x, v, r in edges]
    if any(near):
        return
    expected = [value_by_hand(*token, c) for token in tokens]
    terms = value_loss(values, old, returns, cliprange_value=c)
    assert float(terms.loss) == pytest.approx(sum(e[0] for e in expected), rel=1e-12, abs=1e-12)
    assert float(terms.clip_fraction) == sum(e[2] for e in expected)
    found = gradient_of(lambda x: value_loss(x, old, returns, cliprange_value=c).loss, values)
    torch.testing.assert_close(found, torch.tensor([e[1] for e in expected], dtype=torch.float64), **EXACT)


def test_autograd_agrees_with_finite_differences_on_all_sides_of_the_clips() -> None:
    chance = torch.Generator().manual_seed(3)
    new, old, third = torch.randn(3, 60, generator=chance, dtype=torch.float64)
    for c in (0.2, 0.7):
        terms, values = policy_loss(new, old, third, cliprange=c), value_loss(new, old, third, cliprange_value=c)
        assert 0 < terms.clip_fraction < 60 and 0 < values.clip_fraction < 60
        assert torch.autograd.gradcheck(
            lambda x, c=c: policy_loss(x, old, third, cliprange=c).loss, new.clone().requires_grad_()
        )
        assert torch.autograd.gradcheck(
            lambda x, c=c: value_loss(x, old, third, cliprange_value=c).loss, new.clone().requires_grad_()
        )


def test_on_the_first_pass_the_gradient_is_the_policy_gradient() -> None:
    """Where nothing has changed yet, r = 1: the gradient of -A log p, and no clip binds."""
    old, advantages = torch.tensor([-1.0, -0.1, -7.0]).double(), torch.tensor([2.0, -0.5, 0.0]).double()
    terms = policy_loss(old, old, advantages, cliprange=0.2)
    assert terms.ratio.tolist() == [1.0, 1.0, 1.0]
    assert float(terms.clip_fraction) == float(terms.approx_kl) == 0.0
    found = gradient_of(lambda x: policy_loss(x, old, advantages, cliprange=0.2).loss, old)
    assert torch.equal(found, -advantages)


def test_only_the_losses_carry_gradients() -> None:
    new = torch.zeros(3, requires_grad=True)
    terms = policy_loss(new, torch.zeros(3), torch.ones(3), cliprange=0.2)
    values = value_loss(new, torch.zeros(3), torch.ones(3), cliprange_value=0.2)
    assert terms.loss.requires_grad and values.loss.requires_grad
    rest = (terms.clip_fraction, terms.approx_kl, terms.ratio, values.clip_fraction)
    assert not any(tensor.requires_grad for tensor in rest)


def test_the_mean_of_approx_kl_is_the_divergence_of_old_and_new() -> None:
    """Over every token the old policy may sample."""
    old, new = [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]
    exact = sum(a * math.log(a / b) for a, b in zip(old, new, strict=True))
    mean = 0.0
    for a, b in zip(old, new, strict=True):
        logs = (torch.tensor([x], dtype=torch.float64).log() for x in (b, a))
        mean += a * float(policy_loss(*logs, torch.ones(1).double(), cliprange=0.2).approx_kl)
    assert mean == pytest.approx(exact, rel=1e-12)


def test_approx_kl_keeps_its_digits_after_a_small_step() -> None:
    found = policy_loss(torch.tensor([1e-4]), torch.zeros(1), torch.ones(1), cliprange=0.2).approx_kl
    assert float(found) == pytest.approx(0.5e-8, rel=1e-2)


def test_a_log_ratio_counts_up_to_20_and_nothing_overflows() -> None:
    new, old = torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0])
    terms = policy_loss(new, old, torch.tensor([-1.0, 1.0]), cliprange=0.2)
    assert terms.ratio.tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-5)
    assert math.isfinite(float(terms.loss)) and math.isfinite(float(terms.approx_kl))


def test_a_value_inside_the_range_is_not_counted_as_clipped_by_rounding() -> None:
    """old + (v - old) is not v in float32: a clip written so would bind at a good part of these."""
    chance = torch.Generator().manual_seed(0)
    values, old = torch.randn(2, 2000, generator=chance).clamp(-3, 3) * 0.03
    returns = 3 * torch.randn(2000, generator=chance)
    assert (old + (values - old) != values).sum() > 100
    assert float(value_loss(values, old, returns, cliprange_value=0.2).clip_fraction) == 0


def test_range_0_does_not_clip_values() -> None:
    values, old, returns = torch.tensor([5.0, -5.0]), torch.zeros(2), torch.tensor([6.0, -7.0])
    terms = value_loss(values, old, returns, cliprange_value=0.0)
    assert float(terms.loss) == 2.5 and float(terms.clip_fraction) == 0.0


def test_half_precision_is_computed_in_float32() -> None:
    ones, chance = torch.ones(1000, dtype=torch.bfloat16), torch.full((1000,), -1.0, dtype=torch.bfloat16)
    policy = policy_loss(chance, chance, ones, cliprange=0.2)
    value = value_loss(ones, ones, 3 * ones, cliprange_value=0.2)
    assert policy.loss.dtype == value.loss.dtype == torch.float32
    assert float(policy.loss) == -1000 and float(value.loss) == 2000


def test_no_tokens_cost_nothing() -> None:
    none = torch.zeros(0)
    policy, value = policy_loss(none, none, none, cliprange=0.2), value_loss(none, none, none, cliprange_value=0.2)
    assert float(policy.loss) == float(value.loss) == float(policy.approx_kl) == float(value.clip_fraction) == 0
    assert explained_variance(none, none) == 0.0


@settings(deadline=None, max_examples=60)
@given(TOKENS)
def test_explained_variance_is_by_the_statistics_of_the_tokens(tokens: list[tuple[float, float, float]]) -> None:
    values, returns = [t[0] for t in tokens], [t[1] for t in tokens]
    whole = statistics.pvariance(returns)
    if 0 < whole < 1e-6:
        return  # nothing but rounding
    left = statistics.pvariance([r - v for v, r in zip(values, returns, strict=True)])
    expected = 1 - left / whole if whole else 0.0
    found = explained_variance(*(torch.tensor(x, dtype=torch.float64) for x in (values, returns)))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_explained_variance_worked_out_by_hand() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns + 5, returns) == 1.0  # a constant is no variance
    assert explained_variance(torch.full((3,), 7.0), returns) == 0.0
    assert explained_variance(-returns, returns) == -3.0  # worse than saying nothing
    same = torch.full((3,), 0.1, dtype=torch.float64)  # their mean is rounded off them
    assert explained_variance(returns, same) == 0.0


# All of it in a row, as a step does it: what a token is taught is the same however the responses lie.

Response = list[tuple[float, float, float, float]]
"""Each token's log-prob, reference log-prob, old value and what the policy has changed since."""

STEP_NUMBERS = st.floats(-3, 3, allow_subnormal=False)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Response], list[float]]:
    token = st.tuples(STEP_NUMBERS, STEP_NUMBERS, STEP_NUMBERS, st.floats(-0.5, 0.5, allow_subnormal=False))
    responses = draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=2, max_size=5))
    return responses, draw(st.lists(STEP_NUMBERS, min_size=len(responses), max_size=len(responses)))


def learned(
    responses: list[Response], scores: list[float], *, more: int, processes: int, size: int
) -> list[list[tuple[float, float]]]:
    """The gradients that each token's new log-prob and new value get, by response; with so many columns too many, nan
    beyond the ends, responses dealt to processes, and so many responses a forward."""
    width = max(len(r) for r in responses) + more
    rows = [[*r, *[(math.nan,) * 4] * (width - len(r))] for r in responses]
    old, reference, values, change = torch.tensor(rows, dtype=torch.float64).unbind(2)
    mask = torch.arange(width) < torch.tensor([len(r) for r in responses])[:, None]
    kl = kl_penalty.estimate("k3", old, reference)
    rewards = token_rewards(torch.tensor(scores, dtype=torch.float64), kl, mask, kl_coef=0.2)
    advantages = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    returns = torch.where(mask, advantages + values, 0.0)
    parts = [slice(n, None, processes) for n in range(processes)]
    moments = sum((Moments.of(advantages[p], mask[p]) for p in parts), Moments(0.0, 0.0, 0.0))
    advantages = whiten(advantages, mask, moments=moments)
    new, new_values = (old + change).requires_grad_(), (values + 2 * change).requires_grad_()
    for first in range(0, len(responses), size):
        at = torch.zeros_like(mask)
        at[first : first + size] = mask[first : first + size]
        policy = policy_loss(new[at], old[at], advantages[at], cliprange=0.2)
        value = value_loss(new_values[at], values[at], returns[at], cliprange_value=0.2)
        ((policy.loss + 0.1 * value.loss) / mask.sum()).backward()
    assert new.grad is not None and new_values.grad is not None
    assert not new.grad[~mask].any() and not new_values.grad[~mask].any()
    both = torch.stack([new.grad, new_values.grad], dim=2).tolist()
    return [[(a, b) for a, b in row[: len(r)]] for row, r in zip(both, responses, strict=True)]


@settings(deadline=None, max_examples=40)
@given(steps(), st.integers(0, 3), st.integers(1, 3), st.integers(1, 5), st.randoms(use_true_random=False))
def test_padding_order_micro_batches_and_processes_teach_each_token_the_same(
    step: tuple[list[Response], list[float]], more: int, processes: int, size: int, chance: random.Random
) -> None:
    responses, scores = step
    plain = learned(responses, scores, more=0, processes=1, size=len(responses))
    order = list(range(len(responses)))
    chance.shuffle(order)
    other = learned(
        [responses[i] for i in order], [scores[i] for i in order], more=more, processes=processes, size=size
    )
    for place, i in enumerate(order):
        found, expected = (torch.tensor(x, dtype=torch.float64) for x in (other[place], plain[i]))
        # Where all advantages are equal their variance rounds to 1e-15 beside the 1e-8: seven digits are left.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
