"""Expanding a ranking into pairs.

For `A2>A1=A3|A4` of five responses: tiers {2}, {1,3}, {4}; five pairs from different tiers, one tie, and the four pairs
with A5 that nobody compared.
"""

from __future__ import annotations

import pytest
from hypothesis import given

from data.comparisons import Comparison, expand
from data.notation import Ranking, parse_ranking
from tests.data.test_notation import rankings


def test_pairs_margins_and_weights_of_a_worked_example() -> None:
    expansion = expand(parse_ranking("A2>A1=A3|A4", 5), 5, ties=False)
    assert expansion.comparisons == (
        Comparison(2, 1, margin=1, weight=1 / 5),
        Comparison(2, 3, margin=1, weight=1 / 5),
        Comparison(2, 4, margin=2, weight=1 / 5),
        Comparison(1, 4, margin=1, weight=1 / 5),
        Comparison(3, 4, margin=1, weight=1 / 5),
    )
    assert (expansion.ties_left_out, expansion.unranked) == (1, 4)


def test_a_kept_tie_has_preference_one_half_and_margin_zero() -> None:
    expansion = expand(parse_ranking("A2>A1=A3", 3), 3)
    assert Comparison(1, 3, margin=0, weight=1 / 3, preference=0.5) in expansion.comparisons
    assert expansion.ties_left_out == 0


@pytest.mark.parametrize(("text", "unranked"), [("A2", 3), ("A2|", 3), ("A1=A2=A3", 0)])
def test_a_ranking_that_prefers_nothing_has_no_strict_pair(text: str, unranked: int) -> None:
    expansion = expand(parse_ranking(text, 3), 3, ties=False)
    assert expansion.comparisons == ()
    assert expansion.ties_left_out + expansion.unranked == 3
    assert expansion.unranked == unranked


@given(rankings())
def test_every_pair_is_a_comparison_or_counted(case: tuple[Ranking, int]) -> None:
    ranking, responses = case
    for ties in (True, False):
        expansion = expand(ranking, responses, ties=ties)
        counted = len(expansion.comparisons) + expansion.ties_left_out + expansion.unranked
        assert counted == responses * (responses - 1) // 2
        if expansion.comparisons:
            assert sum(c.weight for c in expansion.comparisons) == pytest.approx(1)
        for c in expansion.comparisons:
            assert c.margin == ranking.ranks[c.rejected] - ranking.ranks[c.chosen]
            assert c.preference == (0.5 if c.margin == 0 else 1.0)
