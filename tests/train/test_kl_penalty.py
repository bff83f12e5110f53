"""KL estimators against the exact divergence of small distributions, and the coefficient against the paper's numbers.

With d = log p - log q of a token, the mean over p of e^-d is the sum of q, 1. So, with E the mean over p:

k1: E d = KL(p || q), by definition.
k3: E (e^-d - 1 + d) = 1 - 1 + KL.
k2: the series of E e^-d = 1 gives E d = E d^2/2 - E d^3/6 + ..., so E d^2/2 - KL = E d^3/6 - E d^4/24 + ...
"""

from __future__ import annotations

import math
from itertools import product
from typing import Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.kl_penalty import KlController, estimate, k1, k2, k3

Name = Literal["k1", "k2", "k3"]
EXACT = {"rel": 1e-12, "abs": 1e-12}


@st.composite
def distributions(draw: st.DrawFn, *, size: int = 4) -> list[float]:
    weights = draw(st.lists(st.floats(0.02, 1), min_size=size, max_size=size))
    return [w / sum(weights) for w in weights]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_over(p: list[float], q: list[float], name: Name) -> float:
    """The estimator's mean over every token that p may sample."""
    each = estimate(name, torch.tensor(p, dtype=torch.float64).log(), torch.tensor(q, dtype=torch.float64).log())
    return sum(a * e for a, e in zip(p, each.tolist(), strict=True))


@settings(deadline=None, max_examples=60)
@given(distributions(), distributions())
def test_k1_and_k3_are_unbiased(p: list[float], q: list[float]) -> None:
    assert mean_over(p, q, "k1") == pytest.approx(divergence(p, q), **EXACT)
    assert mean_over(p, q, "k3") == pytest.approx(divergence(p, q), **EXACT)


@settings(deadline=None, max_examples=60)
@given(distributions(), distributions())
def test_k2_is_biased_by_the_higher_moments_of_the_log_ratio(p: list[float], q: list[float]) -> None:
    moments = [sum(a * math.log(a / b) ** n for a, b in zip(p, q, strict=True)) for n in range(60)]
    bias = sum((-1) ** (n + 1) * moments[n] / math.factorial(n) for n in range(3, 60))
    assert mean_over(p, q, "k2") - divergence(p, q) == pytest.approx(bias, rel=1e-9, abs=1e-9)


def test_the_bias_of_k2_is_a_sixth_of_the_mean_cube_where_the_two_are_close() -> None:
    """Half the distance: an eighth of the bias, a quarter of the divergence."""

    def bias_and_divergence(distance: float) -> tuple[float, float, float]:
        p, q = [0.2, 0.3, 0.5], [0.2 + distance, 0.3 - 2 * distance, 0.5 + distance]
        cube = sum(a * math.log(a / b) ** 3 for a, b in zip(p, q, strict=True))
        return mean_over(p, q, "k2") - divergence(p, q), divergence(p, q), cube

    (bias, exact, cube), (half_bias, half_exact, _) = bias_and_divergence(0.002), bias_and_divergence(0.001)
    assert abs(bias) > 1e-8  # there is one
    assert bias == pytest.approx(cube / 6, rel=0.05)
    assert bias / half_bias == pytest.approx(8, rel=0.05)
    assert exact / half_exact == pytest.approx(4, rel=0.05)


@settings(deadline=None, max_examples=20)
@given(distributions(size=3), distributions(size=3), st.data())
def test_the_sum_over_tokens_estimates_the_divergence_of_whole_responses(
    p: list[float], q: list[float], data: st.DataObject
) -> None:
    """Responses of two tokens, the second's distribution depending on the first."""
    after = [(data.draw(distributions(size=3)), data.draw(distributions(size=3))) for _ in range(3)]
    responses = [(p[a] * after[a][0][b], q[a] * after[a][1][b]) for a, b in product(range(3), repeat=2)]
    exact = divergence([x for x, _ in responses], [y for _, y in responses])
    names: tuple[Name, ...] = ("k1", "k3")
    for name in names:
        total = 0.0
        for a, b in product(range(3), repeat=2):
            log_probs = torch.tensor([p[a], after[a][0][b]], dtype=torch.float64).log()
            reference = torch.tensor([q[a], after[a][1][b]], dtype=torch.float64).log()
            total += p[a] * after[a][0][b] * float(estimate(name, log_probs, reference).sum())
        assert total == pytest.approx(exact, **EXACT)


def test_the_three_estimators_worked_out_by_hand() -> None:
    """p = 1/2 and q = 1/4, then the two exchanged."""
    log_probs, reference = (
        torch.tensor([0.5, 0.25], dtype=torch.float64).log(),
        torch.tensor([0.25, 0.5]).double().log(),
    )
    two = math.log(2)
    assert k1(log_probs, reference).tolist() == pytest.approx([two, -two], **EXACT)
    assert k2(log_probs, reference).tolist() == pytest.approx([two**2 / 2, two**2 / 2], **EXACT)
    assert k3(log_probs, reference).tolist() == pytest.approx([0.5 - 1 + two, 2 - 1 - two], **EXACT)


@pytest.mark.parametrize(("name", "own"), [("k1", k1), ("k2", k2), ("k3", k3)])
def test_an_estimator_is_found_by_its_name(name: Name, own: object) -> None:
    log_probs, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -4.0])
    assert callable(own) and torch.equal(estimate(name, log_probs, reference), own(log_probs, reference))


@settings(deadline=None, max_examples=200)
@given(st.floats(-100, 0, width=32), st.floats(-100, 0, width=32))
def test_k2_and_k3_are_never_negative_and_always_finite(a: float, b: float) -> None:
    for estimator in (k2, k3):
        found = float(estimator(torch.tensor(a), torch.tensor(b)))
        assert found >= 0 and math.isfinite(found)


def test_k3_keeps_its_digits_where_the_two_are_close() -> None:
    """x^2/2 of a log ratio x of 1e-4, which float32 loses in e^x - 1."""
    found = k3(torch.tensor(1e-4), torch.tensor(0.0))
    assert float(found) == pytest.approx(0.5e-8, rel=1e-2)


def test_a_log_ratio_counts_up_to_20_inside_the_exponential_alone() -> None:
    log_probs, reference = torch.tensor([-100.0, 0.0]), torch.tensor([0.0, -100.0])
    assert k1(log_probs, reference).tolist() == [-100.0, 100.0]
    assert k2(log_probs, reference).tolist() == [5000.0, 5000.0]
    assert k3(log_probs, reference).tolist() == pytest.approx([math.exp(20) - 101, 99.0], rel=1e-6)


@pytest.mark.parametrize("name", get_args(Name))
def test_a_token_knows_nothing_of_the_others(name: Name) -> None:
    """Padding and order stay where they are, nan and all."""
    log_probs = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, math.nan, math.nan]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -1.0, -3.0], [-4.0, -1.0, math.inf]], dtype=torch.float64)
    whole = estimate(name, log_probs, reference)
    assert whole.isnan().tolist() == [[False, False, True], [False, True, True]]
    assert torch.equal(whole[0, :2], estimate(name, log_probs[0, :2], reference[0, :2]))
    swapped = estimate(name, log_probs.flip(0), reference.flip(0))
    assert torch.equal(swapped.flip(0).nan_to_num(), whole.nan_to_num())


@pytest.mark.parametrize("name", get_args(Name))
def test_half_precision_is_widened_before_anything_is_taken_off(name: Name) -> None:
    log_probs, reference = torch.tensor([-1.0, -30.0]).bfloat16(), torch.tensor([-1.0625, -30.125]).bfloat16()
    found = estimate(name, log_probs, reference)
    assert found.dtype == torch.float32
    assert torch.equal(found, estimate(name, log_probs.float(), reference.float()))


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 512 / 10000),  # 10% above
        (5.4, 1 - 0.1 * 512 / 10000),
        (7.2, 1 + 0.2 * 512 / 10000),  # 20% above, where the clip begins
        (60.0, 1 + 0.2 * 512 / 10000),
        (0.0, 1 - 0.2 * 512 / 10000),
        (-1.0, 1 - 0.2 * 512 / 10000),  # k1's mean over few responses may be negative
    ],
)
def test_the_coefficient_follows_the_papers_rule(kl: float, factor: float) -> None:
    """Ziegler et al. 2019 with the numbers of their code: 0.15, target 6, horizon 10,000, batches of 512."""
    controller = KlController(0.15, target=6.0, horizon=10000)
    controller.update(kl, 512)
    assert controller.coef == pytest.approx(0.15 * factor, rel=1e-12)
    controller.update(kl, 512)
    assert controller.coef == pytest.approx(0.15 * factor**2, rel=1e-12)


def test_the_papers_own_gain_is_a_tenth_of_the_horizon() -> None:
    """K_beta = 0.1: beta (1 + 0.1 e), e at most 0.2."""
    controller = KlController(0.5, target=10.0, horizon=1000)
    controller.update(1e9, 100)
    assert controller.coef == pytest.approx(0.5 * 1.02, rel=1e-12)


def test_without_a_target_the_coefficient_stays() -> None:
    controller = KlController(0.05, horizon=10000)
    for kl in (-1.0, 0.0, 1000.0):
        controller.update(kl, 512)
    assert controller.coef == 0.05


def test_a_batch_of_many_horizons_does_not_end_the_penalty() -> None:
    controller = KlController(0.05, target=6.0, horizon=100)
    controller.update(0.0, 500)
    assert controller.coef == pytest.approx(0.05 * 0.8, rel=1e-12)


@pytest.mark.parametrize("start", [0.01, 3.0])
def test_the_coefficient_steers_the_divergence_to_its_target(start: float) -> None:
    """A policy whose divergence is 1 / coef: 6 nats at a coefficient of 1/6."""
    controller = KlController(start, target=6.0, horizon=10000)
    for _ in range(1000):
        controller.update(1 / controller.coef, 512)
    assert 1 / controller.coef == pytest.approx(6.0, rel=1e-2)
