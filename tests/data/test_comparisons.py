"""Expanding a ranking into pairs, and counting the votes of several.

For `A2>A1=A3|A4` of five responses: tiers {2}, {1,3}, {4}; five pairs from different tiers, one tie, and the four pairs
with A5 that nobody compared.

Votes: with w annotators for one side, l for the other and t ties, the preference is (w + t/2) / (w + l + t), the tie
share t / (w + l + t).
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.comparisons import Comparison, expand, votes
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


def test_a_kept_tie_has_preference_one_half_tie_share_one_and_margin_zero() -> None:
    expansion = expand(parse_ranking("A2>A1=A3", 3), 3)
    assert Comparison(1, 3, margin=0, weight=1 / 3, preference=0.5, tie=1.0) in expansion.comparisons
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
            assert isinstance(c.margin, int), "exported rows and tables show whole numbers"
            assert (c.preference, c.tie) == ((0.5, 1.0) if c.margin == 0 else (1.0, 0.0))


@st.composite
def panels(draw: st.DrawFn) -> tuple[list[Ranking], int]:
    """None to five rankings of the same two to six responses, each leaving some unranked."""
    responses = draw(st.integers(2, 6))
    found = []
    for _ in range(draw(st.integers(0, 5))):
        tier_of = draw(st.lists(st.none() | st.integers(0, 4), min_size=responses, max_size=responses))
        tiers = [tuple(n for n, t in enumerate(tier_of, start=1) if t == tier) for tier in range(5)]
        found.append(Ranking(tuple(tier for tier in tiers if tier)))
    return found, responses


def test_votes_of_a_worked_example() -> None:
    """A1 and A2: two votes to one, by 1, 2 and -1 tiers. A1 and A3: a vote and a tie. A2 and A3: a vote each."""
    found = votes([parse_ranking(text, 4) for text in ("A1>A2", "A1=A3>A4>A2", "A2>A1>A3")], 4)
    assert found.comparisons[0] == Comparison(1, 2, margin=2 / 3, weight=1 / 6, preference=2 / 3)
    assert found.comparisons[1] == Comparison(1, 3, margin=1 / 2, weight=1 / 6, preference=3 / 4, tie=1 / 2)
    assert found.comparisons[3] == Comparison(2, 3, margin=0.0, weight=1 / 6, preference=1 / 2)


def test_equal_shares_choose_the_lower_number_and_nobody_ranked_is_counted() -> None:
    found = votes([parse_ranking("A3>A1", 3), parse_ranking("A1>A3", 3)], 3)
    assert found.comparisons == (Comparison(1, 3, margin=0.0, weight=1.0, preference=0.5, tie=0.0),)
    assert (found.ties_left_out, found.unranked) == (0, 2)


def test_no_ranking_gives_no_comparison() -> None:
    found = votes([], 4)
    assert (found.comparisons, found.unranked) == ((), 6)


@given(rankings())
def test_the_votes_of_one_annotator_are_the_expansion_of_the_ranking(case: tuple[Ranking, int]) -> None:
    ranking, responses = case
    ours, own = votes([ranking], responses), expand(ranking, responses)
    assert set(ours.comparisons) == set(own.comparisons)
    assert ours.unranked == own.unranked


@given(panels())
def test_votes_are_the_shares_counted_pair_by_pair(case: tuple[list[Ranking], int]) -> None:
    panel, responses = case
    found = votes(panel, responses)
    assert len(found.comparisons) + found.unranked == responses * (responses - 1) // 2
    assert len({frozenset((c.chosen, c.rejected)) for c in found.comparisons}) == len(found.comparisons)
    if found.comparisons:
        assert sum(c.weight for c in found.comparisons) == pytest.approx(1)
    for c in found.comparisons:
        signed = [r.ranks[c.rejected] - r.ranks[c.chosen] for r in panel if {c.chosen, c.rejected} <= r.ranks.keys()]
        shares = [1.0 if lead > 0 else 0.5 if lead == 0 else 0.0 for lead in signed]
        assert c.preference == pytest.approx(sum(shares) / len(shares), abs=1e-15)
        assert c.preference > 0.5 or (c.preference == 0.5 and c.chosen < c.rejected)
        assert c.tie == shares.count(0.5) / len(shares)
        lead = max(sum(signed) / len(signed), 0) if c.preference > 0.5 else 0
        assert c.margin == pytest.approx(lead, abs=1e-15)
        assert c.tie < 1 or c.margin == 0


@given(panels(), st.randoms())
def test_votes_know_no_order_of_annotators(case: tuple[list[Ranking], int], random) -> None:  # type: ignore[no-untyped-def]
    panel, responses = case
    shuffled = random.sample(panel, len(panel))
    assert votes(shuffled, responses) == votes(panel, responses)
    assert votes(panel * 2, responses) == votes(panel, responses), "shares, not counts"
