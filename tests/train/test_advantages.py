"""Rewards, returns, advantages and whitening against plain loops over lists, written from the definitions.

A response is a list of its tokens' numbers; nothing is known of padding here. With r[t] the reward and v[t] the value
of token t = 0 .. n - 1, v[n] = 0, and delta[t] = r[t] + gamma v[t + 1] - v[t]:

returns       R[t] = sum over l = 0 .. n - 1 - t of gamma^l r[t + l]
GAE           A[t] = sum over l = 0 .. n - 1 - t of (gamma lambda)^l delta[t + l]  (Schulman et al. 2016, equation 16)
  lambda = 1: the deltas telescope: A[t] = R[t] - v[t].
  lambda = 0: A[t] = delta[t].
RLOO          a[i] = x[i] - mean of x[j], j /= i
GRPO          a[i] = (x[i] - mean) / (std + eps), std over K - 1
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from train.advantages import Moments, gae, grpo, returns_to_go, rloo, token_rewards, whiten

Rows = list[list[float]]

EXACT = {"rtol": 1e-12, "atol": 1e-12}
NUMBERS = st.floats(-5, 5, allow_subnormal=False)
SHARES = st.floats(0, 1, allow_subnormal=False)


@dataclass(frozen=True)
class Batch:
    """Responses of different lengths: two numbers a token, one a response."""

    first: Rows
    second: Rows
    scores: list[float]

    def order(self, order: list[int]) -> Batch:
        return Batch([self.first[i] for i in order], [self.second[i] for i in order], [self.scores[i] for i in order])


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    rows = [[draw(st.lists(NUMBERS, min_size=n, max_size=n)) for n in lengths] for _ in range(2)]
    return Batch(*rows, draw(st.lists(NUMBERS, min_size=len(lengths), max_size=len(lengths))))


def padded(rows: Rows, *, more: int = 0, beyond: float = math.nan) -> Tensor:
    """The rows in a rectangle of one column at least, with this beyond their ends."""
    width = max(1, *(len(row) for row in rows)) + more
    return torch.tensor([row + [beyond] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(rows: Rows, *, more: int = 0) -> Tensor:
    return padded([[1.0] * len(row) for row in rows], more=more, beyond=0.0).bool()


def same(found: Tensor, expected: Rows, *, more: int = 0) -> None:
    """What was found is that, and 0 beyond the rows' ends."""
    torch.testing.assert_close(found, padded(expected, more=more, beyond=0.0), **EXACT)


def returns_by_hand(rewards: Rows, gamma: float) -> Rows:
    return [[sum(gamma**k * row[t + k] for k in range(len(row) - t)) for t in range(len(row))] for row in rewards]


def gae_by_hand(rewards: Rows, values: Rows, gamma: float, lam: float) -> Rows:
    found = []
    for r, own in zip(rewards, values, strict=True):
        v = [*own, 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        found.append([sum((gamma * lam) ** k * delta[t + k] for k in range(len(r) - t)) for t in range(len(r))])
    return found


def rewards_by_hand(scores: list[float], kl: Rows, kl_coef: float) -> Rows:
    found = [[-kl_coef * k for k in row] for row in kl]
    for row, score in zip(found, scores, strict=True):
        if row:
            row[-1] += score
    return found


def whitened_by_hand(rows: Rows, *, shift: bool) -> Rows:
    numbers = [x for row in rows for x in row]
    if not numbers:
        return rows
    mean, scale = statistics.fmean(numbers), math.sqrt(statistics.pvariance(numbers) + 1e-8)
    return [[(x - mean) / scale + (0 if shift else mean) for x in row] for row in rows]


@settings(deadline=None, max_examples=60)
@given(batches(), SHARES)
def test_a_score_stands_at_the_last_token_and_the_penalty_at_each(batch: Batch, kl_coef: float) -> None:
    scores = torch.tensor(batch.scores, dtype=torch.float64)
    found = token_rewards(scores, padded(batch.first), mask_of(batch.first), kl_coef=kl_coef)
    same(found, rewards_by_hand(batch.scores, batch.first, kl_coef))


def test_rewards_of_two_responses_worked_out_by_hand() -> None:
    scores, kl = torch.tensor([10.0, -3.0]), torch.tensor([[1.0, 2.0, -4.0], [0.5, math.nan, math.inf]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = token_rewards(scores, kl, mask, kl_coef=0.5)
    assert found.tolist() == [[-0.5, -1.0, 12.0], [-3.25, 0.0, 0.0]]


@settings(deadline=None, max_examples=60)
@given(batches(), SHARES)
def test_returns_are_the_discounted_sums_of_what_follows(batch: Batch, gamma: float) -> None:
    found = returns_to_go(padded(batch.first), mask_of(batch.first), gamma=gamma)
    same(found, returns_by_hand(batch.first, gamma))


@settings(deadline=None, max_examples=100)
@given(batches(), SHARES, SHARES)
def test_gae_is_the_explicit_sum_over_deltas(batch: Batch, gamma: float, lam: float) -> None:
    found = gae(padded(batch.first), padded(batch.second), mask_of(batch.first), gamma=gamma, lam=lam)
    same(found, gae_by_hand(batch.first, batch.second, gamma, lam))


def test_gae_of_two_responses_worked_out_by_hand() -> None:
    """gamma = lambda = 1/2. First: deltas 1 + 2 - 2 = 1, 2 + 4 - 4 = 2, 3 + 0 - 8 = -5; A2 = -5, A1 = 2 - 5/4 = 0.75,
    A0 = 1 + 0.75/4 = 1.1875. The second ends after one token: no value is taken from beyond, A0 = 6 - 1 = 5."""
    rewards, values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 7.0, 7.0]]), torch.tensor([[2.0, 4.0, 8.0], [1.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert found.tolist() == [[1.1875, 0.75, -5.0], [5.0, 0.0, 0.0]]


@settings(deadline=None, max_examples=40)
@given(batches(), SHARES)
def test_at_lambda_1_advantage_and_value_are_the_return_and_at_0_the_delta(batch: Batch, gamma: float) -> None:
    rewards, values, mask = padded(batch.first), padded(batch.second), mask_of(batch.first)
    total = gae(rewards, values, mask, gamma=gamma, lam=1.0) + torch.where(mask, values, 0.0)
    torch.testing.assert_close(total, returns_to_go(rewards, mask, gamma=gamma), **EXACT)
    deltas = gae_by_hand(batch.first, batch.second, gamma, 0.0)
    same(gae(rewards, values, mask, gamma=gamma, lam=0.0), deltas)


class Calls(TorchFunctionMode):
    """Counts what is asked of torch."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_thousand_rows_take_as_many_operations_as_one() -> None:
    def operations(rows: int) -> int:
        given = torch.ones(rows, 7), torch.ones(rows, 7), torch.ones(rows, 7, dtype=torch.bool)
        with Calls() as calls:
            gae(*given, gamma=1.0, lam=0.95)
        return calls.count

    assert operations(1000) == operations(1) > 0


def computed(name: str, batch: Batch, *, more: int = 0, beyond: float = math.nan) -> Tensor:
    """One of the four functions of padded tensors, in a rectangle with so many columns too many."""
    first, second = (padded(rows, more=more, beyond=beyond) for rows in (batch.first, batch.second))
    mask = mask_of(batch.first, more=more)
    if name == "token_rewards":
        return token_rewards(torch.tensor(batch.scores, dtype=torch.float64), first, mask, kl_coef=0.3)
    if name == "returns_to_go":
        return returns_to_go(first, mask, gamma=0.9)
    if name == "gae":
        return gae(first, second, mask, gamma=0.9, lam=0.8)
    assert name == "whiten"
    return whiten(first, mask, moments=Moments.of(first, mask))


EACH = ["token_rewards", "returns_to_go", "gae", "whiten"]


@pytest.mark.parametrize("name", EACH)
@settings(deadline=None, max_examples=30)
@given(batch=batches(), more=st.integers(0, 4), chance=st.randoms(use_true_random=False))
def test_neither_padding_nor_the_order_of_the_rows_changes_a_number(
    name: str, batch: Batch, more: int, chance: random.Random
) -> None:
    order = list(range(len(batch.scores)))
    chance.shuffle(order)
    plain, other = computed(name, batch), computed(name, batch.order(order), more=more)
    width = plain.shape[1]
    # Whitened equal numbers: their variance rounds to 1e-15 beside the 1e-8, seven digits are left.
    close = {"rtol": 1e-6, "atol": 1e-9} if name == "whiten" else EXACT
    torch.testing.assert_close(other[:, :width], plain[order], **close)
    assert not other[:, width:].any()


@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("name", EACH)
def test_what_stands_beyond_the_mask_counts_nowhere(name: str, beyond: float) -> None:
    batch = Batch([[1.0, -2.0], [], [0.5, 4.0, 3.0]], [[0.1, 0.2], [], [0.3, 0.4, 0.5]], [7.0, 8.0, 9.0])
    found = computed(name, batch, more=2, beyond=beyond)
    assert torch.equal(found, computed(name, batch, more=2, beyond=0.0))
    assert not found[~mask_of(batch.first, more=2)].any()


def test_nan_inside_the_mask_is_not_hidden() -> None:
    rewards, mask = torch.tensor([[1.0, math.nan, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert gae(rewards, torch.zeros(1, 3), mask, gamma=1.0, lam=0.95).isnan().tolist() == [[True, True, False]]
    assert whiten(rewards, mask, moments=Moments.of(rewards, mask)).isnan().all()


def test_no_response_and_no_token_give_nothing() -> None:
    for shape in ((0, 3), (2, 0)):
        none, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        assert gae(none, none, mask, gamma=1.0, lam=0.95).shape == shape
        assert returns_to_go(none, mask, gamma=1.0).shape == shape
        assert token_rewards(torch.ones(shape[0]), none, mask, kl_coef=0.1).shape == shape
        moments = Moments.of(none, mask)
        assert moments == Moments(0.0, 0.0, 0.0) and moments.mean == moments.std == 0.0
        assert whiten(none, mask, moments=moments).shape == shape


@st.composite
def totals(draw: st.DrawFn) -> Rows:
    samples = draw(st.integers(2, 5))
    return draw(st.lists(st.lists(NUMBERS, min_size=samples, max_size=samples), min_size=1, max_size=4))


@settings(deadline=None, max_examples=60)
@given(totals())
def test_rloo_is_each_total_less_the_mean_of_the_others(rows: Rows) -> None:
    expected = [[x - statistics.fmean(row[:i] + row[i + 1 :]) for i, x in enumerate(row)] for row in rows]
    same(rloo(torch.tensor(rows, dtype=torch.float64)), expected)


@settings(deadline=None, max_examples=60)
@given(totals(), st.sampled_from([1e-4, 1.0]))
def test_grpo_is_in_standard_deviations_of_the_sample(rows: Rows, eps: float) -> None:
    expected = [[(x - statistics.fmean(row)) / (statistics.stdev(row) + eps) for x in row] for row in rows]
    found = grpo(torch.tensor(rows, dtype=torch.float64), eps=eps)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_group_advantages_worked_out_by_hand() -> None:
    """1, 2, 6: the others' means are 4, 3.5, 1.5; the mean is 3, the sample variance (4 + 1 + 9) / 2 = 7. 0 and 2: the
    sample variance is 2."""
    assert rloo(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)).tolist() == [[-3.0, -1.5, 4.5]]
    found = grpo(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64), eps=0.0)
    torch.testing.assert_close(found, torch.tensor([[-2.0, -1.0, 3.0]], dtype=torch.float64) / math.sqrt(7), **EXACT)
    found = grpo(torch.tensor([[0.0, 2.0]], dtype=torch.float64))
    assert found[0, 1].item() == pytest.approx(1 / (math.sqrt(2) + 1e-4), rel=1e-12)


@pytest.mark.parametrize("advantage", [rloo, grpo])
@settings(deadline=None, max_examples=40)
@given(rows=totals(), chance=st.randoms(use_true_random=False), level=NUMBERS)
def test_group_advantages_know_neither_order_nor_level_and_add_up_to_0(
    advantage: Callable[[Tensor], Tensor], rows: Rows, chance: random.Random, level: float
) -> None:
    given = torch.tensor(rows, dtype=torch.float64)
    prompts, responses = list(range(given.shape[0])), list(range(given.shape[1]))
    chance.shuffle(prompts)
    chance.shuffle(responses)
    found, close = advantage(given), {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(advantage(given[prompts][:, responses]), found[prompts][:, responses], **close)
    torch.testing.assert_close(found.sum(1), torch.zeros(len(rows), dtype=torch.float64), **close)
    torch.testing.assert_close(rloo(given + level), rloo(given), **close)


def test_equal_totals_are_worth_exactly_nothing_in_float32_too() -> None:
    """The float32 mean of three times 1000.1 is 6e-5 off, more than half of grpo's eps."""
    given = torch.full((1, 3), 1000.1)
    assert not rloo(given).any() and not grpo(given).any()


@settings(deadline=None, max_examples=60)
@given(batches(), st.booleans())
def test_whitening_is_by_the_statistics_of_the_tokens_alone(batch: Batch, shift: bool) -> None:
    values, mask = padded(batch.first), mask_of(batch.first)
    found = whiten(values, mask, moments=Moments.of(values, mask), shift=shift)
    expected = padded(whitened_by_hand(batch.first, shift=shift), beyond=0.0)
    # Where all numbers are equal the variance rounds to 1e-15 beside the 1e-8: seven digits are left.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_whitening_worked_out_by_hand() -> None:
    """1, 3, 5: mean 3, population variance 8/3."""
    values, mask = torch.tensor([[1.0, 3.0], [5.0, 99.0]], dtype=torch.float64), torch.tensor([[1, 1], [1, 0]]).bool()
    moments = Moments.of(values, mask)
    assert moments == Moments(3.0, 9.0, 35.0)
    assert moments.mean == 3.0 and moments.std == pytest.approx(math.sqrt(8 / 3), rel=1e-12)
    unit = 2 / math.sqrt(8 / 3 + 1e-8)
    expected = torch.tensor([[-unit, 0.0], [unit, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(whiten(values, mask, moments=moments), expected, **EXACT)
    kept = torch.tensor([[3 - unit, 3.0], [3 + unit, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(whiten(values, mask, moments=moments, shift=False), kept, **EXACT)


@settings(deadline=None, max_examples=40)
@given(batches(), st.integers(0, 5))
def test_two_processes_that_add_up_their_moments_whiten_as_one_does(batch: Batch, cut: int) -> None:
    values, mask = padded(batch.first), mask_of(batch.first)
    parts = [(values[:cut], mask[:cut]), (values[cut:], mask[cut:])]
    moments = Moments.of(*parts[0]) + Moments.of(*parts[1])
    one = Moments.of(values, mask)
    for name in ("count", "total", "squares"):
        assert getattr(moments, name) == pytest.approx(getattr(one, name), rel=1e-12, abs=1e-12)
    found = torch.cat([whiten(v, m, moments=moments) for v, m in parts])
    torch.testing.assert_close(found, whiten(values, mask, moments=one), rtol=1e-6, atol=1e-6)


def test_moments_are_summed_in_float64() -> None:
    """In float32 the squares of numbers around 3000 leave nothing of a deviation of 0.01."""
    values = 3000 + 0.01 * torch.tensor([[1.0, -1.0]]).repeat(1, 5000)
    found = Moments.of(values, torch.ones(values.shape, dtype=torch.bool))
    assert found.std == pytest.approx(statistics.pstdev(values[0].tolist()), rel=1e-3)


def test_equal_numbers_have_no_spread_though_their_moments_round() -> None:
    """The mean square of three times 0.1 comes out 2e-18 below the square of the mean."""
    values, mask = torch.full((1, 3), 0.1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    moments = Moments.of(values, mask)
    assert moments.std == 0.0
    assert whiten(values, mask, moments=moments).abs().max() < 1e-9


def test_half_precision_is_computed_in_float32() -> None:
    """1000 tokens of 1: bfloat16 counts to 256 and no further."""
    rewards, mask = torch.ones(1, 1000, dtype=torch.bfloat16), torch.ones(1, 1000, dtype=torch.bool)
    found = returns_to_go(rewards, mask, gamma=1.0)
    assert found.dtype == torch.float32 and found[0, 0].item() == 1000
    assert gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)[0, 0].item() == 1000
