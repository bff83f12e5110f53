"""The losses against their derivations, in plain Python and float64.

With d = s_chosen - s_rejected, q the preference, t the tie share, win share w = q - t/2 and loss share l = 1 - q - t/2
(so w + l + t = 1), and s(x) = 1 / (1 + exp(-x)), where d/dx log s(x) = s(-x):

Bradley-Terry: P(win) = s(d).
    l(d) = q log(1 + exp(-d)) + (1 - q) log(1 + exp(d)),      l'(d) = s(d) - q.

Davidson: P(win), P(loss), P(tie) are exp(d/2), exp(-d/2), nu, each over their sum Z; Z' / Z = (P(win) - P(loss)) / 2.
    l(d) = log Z - w d/2 + l d/2 - t log nu,      l'(d) = ((P(win) - P(loss)) - (w - l)) / 2.

Rao-Kupper, with h = log theta: P(win) = s(d - h), P(loss) = s(-d - h), P(tie) = 1 - P(win) - P(loss). Over the common
denominator (e^d + theta)(theta e^d + 1), the numerator of P(tie) is (theta^2 - 1) e^d, so P(tie) = (theta^2 - 1)
P(win) P(loss), which does not cancel.
    l(d) = -(w + t) log P(win) - (l + t) log P(loss) - t log(theta^2 - 1),
    l'(d) = (l + t) s(d + h) - (w + t) s(h - d).

Plackett-Luce: response m, of tier T, is chosen among the responses C(m) of its ranking with a tier of T or below;
c(m) = 1 / (listed - 1), times (t - 1) / t in the last tier, of t responses; p(k | m) = exp(s_k) / sum over C(m).
    l(s) = sum over m of -c(m) log p(m | m),      dl/ds_k = sum over m of c(m) (p(k | m) - [k = m]).

A batch adds up by weight, so the gradient of comparison i by its chosen score is w_i l'(d_i).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.comparisons import expand, votes
from data.notation import parse_ranking
from train.groups import Group, comparison_tensors, ranking_tensors
from train.losses import RewardLoss, bradley_terry, centering, davidson, pairwise_loss, plackett_luce, rao_kupper

EXACT = {"rtol": 0, "atol": 1e-12}
DIFFERENCE = torch.tensor([1.5, -2.3, 0.0, 0.4, 7.0, -30.0, 25.0], dtype=torch.float64)
PREFERENCE = torch.tensor([1.0, 1.0, 0.5, 0.8, 0.0, 1.0, 0.5], dtype=torch.float64)
TIE = torch.tensor([0.0, 0.0, 1.0, 0.2, 0.0, 0.0, 0.5], dtype=torch.float64)
STRENGTHS = [0.3, 1.0, 5.0]
WITH_TIES = {"davidson": davidson, "rao_kupper": rao_kupper}


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def outcomes(name: str, d: float, strength: float) -> tuple[float, float, float]:
    """P(win), P(loss), P(tie) as the derivation has them."""
    if name == "davidson":
        win, loss = math.exp(d / 2), math.exp(-d / 2)
        total = win + loss + strength
        return win / total, loss / total, strength / total
    theta = 1 + strength
    win, loss = 1 / (1 + theta * math.exp(-d)), 1 / (1 + theta * math.exp(d))
    return win, loss, (theta**2 - 1) * win * loss


def slope(name: str, d: float, q: float, t: float, strength: float) -> float:
    """l'(d) of the derivation."""
    w, l = q - t / 2, 1 - q - t / 2  # noqa: E741
    if name == "davidson":
        win, loss, _ = outcomes(name, d, strength)
        return ((win - loss) - (w - l)) / 2
    h = math.log(1 + strength)
    return (l + t) * logistic(d + h) - (w + t) * logistic(h - d)


def gradient_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(loss(at).sum(), at)[0]


def by_outcome(loss: Callable[..., Tensor], difference: Tensor, strength: float) -> list[Tensor]:
    """The losses of a win, a loss and a tie."""
    one = torch.ones_like(difference)
    labels = [(1.0, 0.0), (0.0, 0.0), (0.5, 1.0)]
    return [loss(difference, preference=q * one, tie=t * one, strength=strength) for q, t in labels]


def test_bradley_terry_is_the_derived_formula_and_gradient() -> None:
    found = bradley_terry(DIFFERENCE, preference=PREFERENCE)
    slopes = gradient_of(partial(bradley_terry, preference=PREFERENCE), DIFFERENCE)
    for i, (d, q) in enumerate(zip(DIFFERENCE.tolist(), PREFERENCE.tolist(), strict=True)):
        expected = q * math.log1p(math.exp(-d)) + (1 - q) * math.log1p(math.exp(d))
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
        assert slopes[i].item() == pytest.approx(logistic(d) - q, abs=1e-12)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", WITH_TIES)
def test_losses_with_ties_are_the_derived_formulas_and_gradients(name: str, strength: float) -> None:
    loss = partial(WITH_TIES[name], preference=PREFERENCE, tie=TIE, strength=strength)
    found, slopes = loss(DIFFERENCE), gradient_of(loss, DIFFERENCE)
    for i, (d, q, t) in enumerate(zip(DIFFERENCE.tolist(), PREFERENCE.tolist(), TIE.tolist(), strict=True)):
        shares = (q - t / 2, 1 - q - t / 2, t)
        expected = -sum(a * math.log(p) for a, p in zip(shares, outcomes(name, d, strength), strict=True))
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
        assert slopes[i].item() == pytest.approx(slope(name, d, q, t, strength), abs=1e-12)


def test_gradients_pass_gradcheck() -> None:
    d = torch.tensor([1.5, -2.3, 0.0, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    q, t = PREFERENCE[:5], TIE[:5]
    assert torch.autograd.gradcheck(partial(bradley_terry, preference=q), (d,))
    for loss in WITH_TIES.values():
        assert torch.autograd.gradcheck(partial(loss, preference=q, tie=t, strength=0.7), (d,))
    assert torch.autograd.gradcheck(centering, (d, d.detach().flip(0).requires_grad_()))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", WITH_TIES)
def test_win_loss_and_tie_are_the_probabilities_of_one_outcome(name: str, strength: float) -> None:
    total = sum(torch.exp(-found) for found in by_outcome(WITH_TIES[name], DIFFERENCE, strength))
    torch.testing.assert_close(total, torch.ones_like(DIFFERENCE), **EXACT)
    equal = by_outcome(WITH_TIES[name], torch.zeros(1, dtype=torch.float64), strength)[2]
    assert math.exp(-equal.item()) == pytest.approx(strength / (2 + strength), abs=1e-12), "of equal responses"


@pytest.mark.parametrize("name", WITH_TIES)
def test_without_ties_and_with_a_vanishing_strength_both_are_bradley_terry(name: str) -> None:
    q = torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)
    found = WITH_TIES[name](DIFFERENCE[:3], preference=q, tie=torch.zeros_like(q), strength=1e-14)
    torch.testing.assert_close(found, bradley_terry(DIFFERENCE[:3], preference=q), **EXACT)


@pytest.mark.parametrize("name", WITH_TIES)
def test_swapping_the_sides_and_the_labels_changes_nothing(name: str) -> None:
    for loss in (partial(WITH_TIES[name], tie=TIE, strength=0.7), bradley_terry):
        swapped = loss(-DIFFERENCE, preference=1 - PREFERENCE)
        torch.testing.assert_close(loss(DIFFERENCE, preference=PREFERENCE), swapped, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_differences_have_the_limits_and_finite_gradients(dtype: torch.dtype) -> None:
    """At d = -1e4 a win costs 1e4 (Rao-Kupper: log theta more), a Davidson tie half of that less log nu."""
    far, strength, theta = torch.tensor([-1e4, 1e4], dtype=dtype), 2.0, 3.0
    tie_rk = 1e4 + math.log(theta) - math.log(theta**2 - 1)
    expected = {
        "davidson": ([1e4, 0], [0, 1e4], [5e3 - math.log(strength)] * 2),
        "rao_kupper": ([1e4 + math.log(theta), 0], [0, 1e4 + math.log(theta)], [tie_rk] * 2),
    }
    for name, limits in expected.items():
        for found, limit in zip(by_outcome(WITH_TIES[name], far, strength), limits, strict=True):
            assert found.tolist() == pytest.approx(limit, rel=1e-6)
        slopes = gradient_of(lambda d, loss=WITH_TIES[name]: torch.stack(by_outcome(loss, d, strength)), far)
        assert slopes.tolist() == pytest.approx([-1.5, 1.5] if name == "davidson" else [-2, 2], rel=1e-6)
    assert bradley_terry(far, preference=torch.ones(2)).tolist() == pytest.approx([1e4, 0])


def test_a_sure_win_keeps_its_small_loss() -> None:
    """log(1 + x) = x to first order: no loss is rounded to nothing by a sum with 1."""
    far, sure = torch.tensor([80.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    none = torch.zeros_like(sure)
    assert bradley_terry(far, preference=sure).item() == pytest.approx(math.exp(-80), rel=1e-12)
    assert davidson(far, preference=sure, tie=none, strength=2.0).item() == pytest.approx(2 * math.exp(-40), rel=1e-12)
    assert rao_kupper(far, preference=sure, tie=none, strength=2.0).item() == pytest.approx(3 * math.exp(-80))


def test_centering_is_the_square_of_the_sum() -> None:
    a, b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 2.0, -1.5])
    assert centering(a, b).tolist() == [4.0, 0.0, 1.0]


def test_the_pairwise_loss_is_the_weighted_mean() -> None:
    a, b = DIFFERENCE[:3], torch.tensor([0.5, 1.0, -1.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.25, 2.0], dtype=torch.float64)
    expected = sum(
        w * (q * math.log1p(math.exp(y - x)) + (1 - q) * math.log1p(math.exp(x - y)))
        for x, y, q, w in zip(a.tolist(), b.tolist(), PREFERENCE.tolist()[:3], weight.tolist(), strict=True)
    )
    for scale in (1, 7):
        found = pairwise_loss(a, b, preference=PREFERENCE[:3], weight=scale * weight)
        assert found.item() == pytest.approx(expected / 3.25, abs=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    half = torch.tensor([256.0, 1.0], dtype=torch.bfloat16)
    ones, other = torch.ones(2), torch.tensor([255.0, 1.0], dtype=torch.bfloat16)
    assert bradley_terry(half, preference=ones).dtype == torch.float32
    assert plackett_luce(half, **places("A1>A2")).dtype == torch.float32
    assert centering(half, other).tolist() == [511.0**2, 4.0], "511 is no bfloat16"
    found = pairwise_loss(half, -half + 1, preference=1 - ones, weight=ones)
    assert found.item() == pytest.approx((511 + math.log1p(math.exp(1))) / 2), "511 again"


def group(*notations: str, responses: int = 0, soft: bool = False) -> Group:
    """A prompt with these rankings; only what the tensors are made of."""
    size = responses or max(int(c) for text in notations for c in text if c.isdigit())
    rankings = tuple(parse_ranking(text, size) for text in notations)
    expansions = [votes(rankings, size)] if soft else [expand(r, size) for r in rankings]
    return Group(
        prompt_id="p",
        rows=((1,),) * size,
        chars=(1,) * size,
        rankings=rankings,
        comparisons=tuple(c for e in expansions for c in e.comparisons),
    )


def places(*notations: str) -> dict[str, Tensor]:
    """What `plackett_luce` takes, each ranking of the same responses."""
    return ranking_tensors([group(*notations)])


def in_a_loop(scores: list[float], listed: list[int], tier: list[int], ranking: list[int]) -> tuple[list, list]:
    """The derivation's losses, a ranking each, and the gradient of their sum."""
    losses, slopes = [0.0] * (max(ranking) + 1), [0.0] * len(scores)
    everywhere = range(len(listed))
    for m in everywhere:
        mine = [k for k in everywhere if ranking[k] == ranking[m]]
        choices = [k for k in mine if tier[k] >= tier[m]]
        c = 1 / (len(mine) - 1)
        if tier[m] == max(tier[k] for k in mine):
            t = len(choices)
            c *= (t - 1) / t
        total = sum(math.exp(scores[listed[k]]) for k in choices)
        losses[ranking[m]] -= c * math.log(math.exp(scores[listed[m]]) / total)
        slopes[listed[m]] -= c
        for k in choices:
            slopes[listed[k]] += c * math.exp(scores[listed[k]]) / total
    return losses, slopes


@st.composite
def listings(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Scores, and up to five rankings of some of them, in any order: (response, tier, ranking)."""
    scores = draw(st.lists(st.floats(-8, 8), min_size=2, max_size=9))
    found = []
    for number in range(draw(st.integers(1, 5))):
        ranked = draw(st.lists(st.integers(0, len(scores) - 1), min_size=2, unique=True))
        found += [(n, draw(st.integers(0, 3)), number) for n in ranked]
    return scores, draw(st.permutations(found))


@settings(deadline=None)  # the first example warms torch up
@given(listings())
def test_plackett_luce_is_a_plain_loop_over_choices_with_its_gradient(case) -> None:  # type: ignore[no-untyped-def]
    scores, found = case
    listed, tier, ranking = (list(column) for column in zip(*found, strict=True))
    names = {"listed": torch.tensor(listed), "tier": torch.tensor(tier), "ranking": torch.tensor(ranking)}
    told = torch.tensor(scores, dtype=torch.float64)
    losses, slopes = in_a_loop(scores, listed, tier, ranking)
    assert plackett_luce(told, **names).tolist() == pytest.approx(losses, abs=1e-12)
    assert gradient_of(partial(plackett_luce, **names), told).tolist() == pytest.approx(slopes, abs=1e-12)


def test_a_strict_ranking_is_the_product_of_softmaxes_over_what_is_left() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.9], dtype=torch.float64)
    order = [2, 0, 4, 1]  # A4 is unranked
    product = 1.0
    for i in range(3):
        product *= torch.softmax(scores[order[i:]], 0)[0].item()
    loss = partial(plackett_luce, **places("A3>A1>A5>A2"))
    assert loss(scores).tolist() == pytest.approx([-math.log(product) / 3], abs=1e-12)
    assert gradient_of(loss, scores)[3] == 0


def test_two_responses_are_bradley_terry_and_a_tie_is_label_one_half() -> None:
    scores = torch.tensor([0.3, -1.2], dtype=torch.float64)
    found = plackett_luce(scores, **places("A1>A2", "A2>A1", "A1=A2"))
    expected = bradley_terry(torch.full((3,), 1.5).double(), preference=torch.tensor([1.0, 0.0, 0.5]).double())
    torch.testing.assert_close(found, expected, **EXACT)


def test_tied_responses_are_each_chosen_from_all_that_are_left() -> None:
    """A1=A2>A3=A4: two choices out of four; then the last two, each at one half. Three choices in all."""
    s = [0.3, -1.2, 2.0, 0.1]
    four, two = math.log(sum(map(math.exp, s))), math.log(math.exp(s[2]) + math.exp(s[3]))
    expected = ((four - s[0]) + (four - s[1]) + 0.5 * (two - s[2]) + 0.5 * (two - s[3])) / 3
    found = plackett_luce(torch.tensor(s, dtype=torch.float64), **places("A1=A2>A3=A4"))
    assert found.tolist() == pytest.approx([expected], abs=1e-12)


def test_rankings_of_other_prompts_and_annotators_do_not_mix() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.9, -0.4], dtype=torch.float64)
    first, second = group("A1>A2=A3", "A3>A1"), group("A2=A3>A1", "A2")
    together = plackett_luce(scores, **ranking_tensors([first, second]))
    apart = [plackett_luce(scores[:3], **ranking_tensors([first])), plackett_luce(scores[3:], **places("A2=A3>A1"))]
    torch.testing.assert_close(together, torch.cat(apart), **EXACT)


def test_plackett_luce_passes_gradcheck_and_stays_finite_far_out() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    loss = partial(plackett_luce, **places("A1=A2>A3=A4", "A1>A4", "A2=A3>A1", "A1=A2=A3"))
    assert torch.autograd.gradcheck(loss, (scores,))
    far = torch.tensor([-1e4, 1e4, 0.0, 1e4])
    assert loss(far).tolist() == pytest.approx([(2e4 + math.log(2) * 2 + 5e3) / 3, 2e4, 5e3, 1e4], rel=1e-6)
    assert torch.isfinite(gradient_of(loss, far)).all()


# The objective.

SCORES = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.9, -0.4, 1.1, 0.2, -0.7], dtype=torch.float64)
PROMPTS = [group("A1>A2=A3", "A3>A1"), group("A2>A1", "A1=A2", soft=True), group("A1=A2", "A2>A3|A4>A1")]
OBJECTIVES = {
    "bradley_terry": RewardLoss(),
    "shifted": RewardLoss(margin=0.5, label_smoothing=0.1),
    "centred": RewardLoss(center_rewards_coefficient=0.01),
    "drop": RewardLoss(ties="drop", label_smoothing=0.1, margin=0.3, center_rewards_coefficient=0.5),
    "davidson": RewardLoss(ties="davidson", tie_strength=0.7, label_smoothing=0.2, margin=1),
    "rao_kupper": RewardLoss(ties="rao_kupper", tie_strength=2.0, label_smoothing=0.2, margin=1),
    "plackett_luce": RewardLoss(loss="plackett_luce"),
    "plackett_luce, centred": RewardLoss(loss="plackett_luce", center_rewards_coefficient=0.5),
}


def batch_of(groups: list[Group]) -> dict[str, Tensor]:
    return {**comparison_tensors(groups, dtype=torch.float64), **ranking_tensors(groups)}


def by_hand(objective: RewardLoss, groups: list[Group]) -> tuple[float, float]:
    """Sum and weight over comparisons, one at a time."""
    total = weights = 0.0
    starts = [sum(len(g.rows) for g in groups[:i]) for i in range(len(groups))]
    for start, c in [(start, c) for start, g in zip(starts, groups, strict=True) for c in g.comparisons]:
        a, b = (SCORES[start + n - 1].item() for n in (c.chosen, c.rejected))
        d, e = a - b - objective.margin * c.margin, objective.label_smoothing
        w, l, t = c.preference - c.tie / 2, 1 - c.preference - c.tie / 2, c.tie  # noqa: E741
        w, l = w * (1 - e) + l * e, l * (1 - e) + w * e  # noqa: E741
        if objective.ties in WITH_TIES:
            probabilities = outcomes(objective.ties, d, objective.tie_strength)
            each, counts = -sum(x * math.log(p) for x, p in zip((w, l, t), probabilities, strict=True)), 1.0
        else:
            half, counts = (0.0, 1 - t) if objective.ties == "drop" else (t / 2, 1.0)
            each = -(w + half) * math.log(logistic(d)) - (l + half) * math.log(logistic(-d))
        total += c.weight * (each + objective.center_rewards_coefficient * counts * (a + b) ** 2)
        weights += c.weight * counts
    return total, weights


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if "plackett" not in n])
def test_the_objective_is_the_weighted_sum_over_comparisons(name: str) -> None:
    """Margin, smoothing, tie votes and centering as the flags say; vote shares among them."""
    assert {0.75} < {c.preference for g in PROMPTS for c in g.comparisons}, "a share, beside wins"
    total, weights = by_hand(OBJECTIVES[name], PROMPTS)
    assert OBJECTIVES[name](SCORES, batch_of(PROMPTS)).item() == pytest.approx(total, abs=1e-12)
    assert OBJECTIVES[name].weight(batch_of(PROMPTS)).item() == pytest.approx(weights, abs=1e-12)


def test_under_plackett_luce_each_ranking_weighs_one() -> None:
    batch = batch_of(PROMPTS)
    rankings = plackett_luce(SCORES, **ranking_tensors(PROMPTS))
    squares = by_hand(RewardLoss(center_rewards_coefficient=0.5), PROMPTS)[0] - by_hand(RewardLoss(), PROMPTS)[0]
    assert OBJECTIVES["plackett_luce"](SCORES, batch).item() == pytest.approx(rankings.sum().item(), abs=1e-12)
    found = OBJECTIVES["plackett_luce, centred"](SCORES, batch).item()
    assert found == pytest.approx(rankings.sum().item() + squares, abs=1e-12)
    assert OBJECTIVES["plackett_luce"].weight(batch).item() == len(rankings) == 6


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_parts_of_a_batch_add_up_to_the_whole(name: str) -> None:
    """Sums, weights and gradients: what lets a step be computed in passes."""
    objective, whole = OBJECTIVES[name], batch_of(PROMPTS)
    parts = [(SCORES[:3], batch_of(PROMPTS[:1])), (SCORES[3:], batch_of(PROMPTS[1:]))]
    total = sum(objective(own, batch) for own, batch in parts)
    torch.testing.assert_close(total, objective(SCORES, whole), **EXACT)
    torch.testing.assert_close(sum(objective.weight(b) for _, b in parts), objective.weight(whole), check_dtype=False)
    slopes = [gradient_of(partial(objective, batch=batch), own) for own, batch in parts]
    torch.testing.assert_close(torch.cat(slopes), gradient_of(partial(objective, batch=whole), SCORES), **EXACT)


def test_dropped_ties_count_as_if_nobody_had_voted_for_them() -> None:
    """Votes 2 > 1 and a tie: one vote of weight one half. Only ties: no weight, a sum of 0 and gradients of 0."""
    objective = RewardLoss(ties="drop", center_rewards_coefficient=0.1)
    scores = SCORES[:2]
    mixed, strict = batch_of([group("A2>A1", "A1=A2", soft=True)]), batch_of([group("A2>A1")])
    torch.testing.assert_close(objective(scores, mixed), objective(scores, strict) / 2, **EXACT)
    assert objective.weight(mixed).item() == 0.5
    only_ties = batch_of([group("A1=A2")])
    assert (objective(scores, only_ties).item(), objective.weight(only_ties).item()) == (0, 0)
    assert gradient_of(partial(objective, batch=only_ties), scores).tolist() == [0, 0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_with_nothing_to_learn_gives_zero_with_gradients(name: str) -> None:
    empty = batch_of([group("A1", responses=2)])
    assert OBJECTIVES[name](SCORES[:2], empty).item() == OBJECTIVES[name].weight(empty).item() == 0
    assert gradient_of(partial(OBJECTIVES[name], batch=empty), SCORES[:2]).tolist() == [0, 0]


def test_a_margin_moves_the_point_of_equal_cost_by_the_tiers_between() -> None:
    batch, objective = batch_of([group("A1>A2>A3")]), RewardLoss(margin=0.5)
    shifted = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)  # exactly the margins apart
    assert objective(shifted, batch).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objective_of_bfloat16_scores_is_float32(name: str) -> None:
    batch = {**comparison_tensors(PROMPTS), **ranking_tensors(PROMPTS)}
    found = OBJECTIVES[name](SCORES.bfloat16(), batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, OBJECTIVES[name](SCORES.bfloat16().float(), batch))
