"""Correlations of scores with rankings and with length."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from tests.train.judged_groups import group
from train.correlations import length_correlation, ranking_correlation


def tau_b(xs: list[float], ys: list[float]) -> float:
    """Kendall 1945: (concordant - discordant) / sqrt of (pairs untied in x) times (pairs untied in y)."""
    signs = [(_sign(a - b), _sign(c - d)) for (a, c), (b, d) in combinations(zip(xs, ys, strict=True), 2)]
    return sum(x * y for x, y in signs) / math.sqrt(sum(x * x for x, _ in signs) * sum(y * y for _, y in signs))


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def test_each_annotators_ranking_counts_once_and_only_its_ranked_responses() -> None:
    one = group("A2>A1=A4", "A4>A3>A2>A1", chars=(1, 1, 1, 1))
    scores = [0.5, 0.9, 0.5, 0.1]
    first = tau_b([2, 3, 2], [0.5, 0.9, 0.1])
    second = tau_b([1, 2, 3, 4], scores)
    assert ranking_correlation([one], [scores]) == (pytest.approx((first + second) / 2), 2)


def test_best_first_is_plus_one_and_reversed_is_minus_one() -> None:
    one = group("A3>A1>A2", chars=(1, 1, 1))
    assert ranking_correlation([one], [[2.0, 1.0, 3.0]]) == (pytest.approx(1.0), 1)
    assert ranking_correlation([one], [[2.0, 3.0, 1.0]]) == (pytest.approx(-1.0), 1)


def test_rankings_without_a_correlation_are_left_out_of_the_count() -> None:
    groups = [group("A1=A2", "A1>A2", "A1", chars=(1, 1)), group("A1>A2", chars=(1, 1))]
    assert ranking_correlation(groups, [[2.0, 1.0], [1.0, 1.0]]) == (pytest.approx(1.0), 1)
    assert ranking_correlation(groups[1:], [[1.0, 1.0]]) == (None, 0)


def test_length_within_a_prompt_is_told_apart_from_length_over_all() -> None:
    """The prompt with long responses has the higher rewards, but in each prompt the shorter response is rewarded."""
    groups = [group("A1>A2", chars=(10, 20)), group("A1>A2", chars=(1000, 2000)), group("A1>A2", chars=(7, 7))]
    found = length_correlation(groups, [[1.0, 0.0], [11.0, 10.0], [0.5, 0.4]])
    assert found["within_prompt"] == pytest.approx(-1.0)
    assert found["prompts"] == 2
    assert found["pearson"] > 0.8
    assert found["spearman"] > 0.4


def test_pearson_and_spearman_are_the_textbooks() -> None:
    found = length_correlation([group("A1>A2", chars=(1, 2, 3, 10))], [[2.0, 4.0, 3.0, 5.0]])
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    assert found["spearman"] == found["within_prompt"] == pytest.approx(0.8)
    # Deviations -3 -2 -1 6 and -1.5 0.5 -0.5 1.5: 13 / sqrt(50 * 5).
    assert found["pearson"] == pytest.approx(13 / math.sqrt(250))
