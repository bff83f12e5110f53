"""Expand one ranking into pairwise comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from data.notation import Ranking


@dataclass(frozen=True)
class Comparison:
    """`chosen` was judged at least as good as `rejected` (response numbers, 1…K).

    `margin`: tier distance, 0 for a tie.
    `preference`: probability that `chosen` is the better one: 1.0, or 0.5 for a tie.
    `weight`: 1 / (comparisons of the ranking), so a ranking counts once however many responses it has.
    """

    chosen: int
    rejected: int
    margin: int
    weight: float
    preference: float = 1.0


@dataclass(frozen=True)
class Expansion:
    """All C(K,2) pairs of a ranking: `len(comparisons) + ties_left_out + unranked == K(K-1)/2`."""

    comparisons: tuple[Comparison, ...]
    ties_left_out: int
    """Tied pairs not in `comparisons`; 0 unless `ties=False`."""
    unranked: int
    """Pairs with at least one unranked response: nobody compared them."""


def expand(ranking: Ranking, responses: int, *, ties: bool = True) -> Expansion:
    """Every pair of ranked responses, best first. `ties=False` leaves tied pairs out (and counts them).

    Source: Ouyang et al. 2022 (InstructGPT), equation 1, where each of a prompt's C(K,2) pairs weighs 1/C(K,2); here
    the same for partial rankings and ties.
    """
    ranks = ranking.ranks
    ranked = sorted(ranks, key=lambda n: (ranks[n], n))
    pairs = list(combinations(ranked, 2))
    kept = [(a, b) for a, b in pairs if ties or ranks[a] != ranks[b]]
    comparisons = tuple(
        Comparison(
            chosen=a,
            rejected=b,
            margin=ranks[b] - ranks[a],
            weight=1 / len(kept),
            preference=0.5 if ranks[a] == ranks[b] else 1.0,
        )
        for a, b in kept
    )
    all_pairs = responses * (responses - 1) // 2
    return Expansion(comparisons, ties_left_out=len(pairs) - len(kept), unranked=all_pairs - len(pairs))
