"""Pairwise comparisons: of one ranking, or of all annotators' votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from data.notation import Ranking


@dataclass(frozen=True)
class Comparison:
    """`chosen` was judged at least as good as `rejected` (response numbers, 1…K).

    `margin`: tier distance, 0 for a tie; of several votes, the mean by which `chosen` leads, at least 0.
    `preference`: probability that `chosen` is the better one: 1.0, or 0.5 for a tie; of several votes, their share.
    `tie`: share of the votes that call them equal: 1.0 for a tie, 0.0 for a strict comparison.
    `weight`: 1 / (comparisons of the ranking), so a ranking counts once however many responses it has; of several
    votes, 1 / (comparisons of the prompt).
    """

    chosen: int
    rejected: int
    margin: float
    weight: float
    preference: float = 1.0
    tie: float = 0.0


@dataclass(frozen=True)
class Expansion:
    """All C(K,2) pairs of a ranking or a prompt: `len(comparisons) + ties_left_out + unranked == K(K-1)/2`."""

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
            tie=1.0 if ranks[a] == ranks[b] else 0.0,
        )
        for a, b in kept
    )
    all_pairs = responses * (responses - 1) // 2
    return Expansion(comparisons, ties_left_out=len(pairs) - len(kept), unranked=all_pairs - len(pairs))


def votes(rankings: Sequence[Ranking], responses: int) -> Expansion:
    """One comparison for every pair that at least one annotator ranked on both sides, in the order of the numbers.

    `chosen` is the side with the larger share of the votes, a tie counting half for each side; the lower number where
    the shares are equal. `margin` is the mean tier distance by which it leads, at least 0, and 0 where the shares are
    equal. `unranked` counts the pairs that nobody ranked on both sides.
    """
    ranks = [ranking.ranks for ranking in rankings]
    leads = {
        (a, b): [own[b] - own[a] for own in ranks if a in own and b in own]
        for a, b in combinations(range(1, responses + 1), 2)
    }
    voted = {pair: found for pair, found in leads.items() if found}
    comparisons = tuple(_vote(pair, found, weight=1 / len(voted)) for pair, found in voted.items())
    return Expansion(comparisons, ties_left_out=0, unranked=len(leads) - len(voted))


def _vote(pair: tuple[int, int], leads: Sequence[int], *, weight: float) -> Comparison:
    """`leads`: by how many tiers the first response is ahead of the second, one number an annotator."""
    first = sum(lead > 0 for lead in leads)
    second = sum(lead < 0 for lead in leads)
    ties = len(leads) - first - second
    chosen, rejected = pair if first >= second else reversed(pair)
    lead = sum(leads) * ((first > second) - (first < second))
    return Comparison(
        chosen=chosen,
        rejected=rejected,
        margin=max(lead, 0) / len(leads),
        weight=weight,
        preference=(max(first, second) + ties / 2) / len(leads),
        tie=ties / len(leads),
    )
