"""How often scores agree with people, overall and apart by margin and by annotator; and how often people agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from data.notation import Ranking
from train.groups import Group
from train.judged import JudgedPair, accuracy_of, judged_pairs, mean, strict


@dataclass(frozen=True)
class Agreement:
    """Agreement of one score per response with all rankings. None where there is nothing to count."""

    accuracy: float | None
    """Share of strict comparisons whose chosen response scores higher; equal scores count one half."""
    top1: float | None
    """Share of rankings whose best-scored response is among the ranking's best; equal best scores share it."""
    scored_ties: int
    """Strict comparisons whose two scores are equal."""


def agreement(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> Agreement:
    """Compare scores (one list a group, one number a response) with the groups' rankings."""
    pairs = strict(judged_pairs(groups, scores))
    tops = [
        _top1(ranking, own)
        for g, own in zip(groups, scores, strict=True)
        for ranking in g.rankings
        if len(ranking.tiers) > 1
    ]
    return Agreement(accuracy=accuracy_of(pairs), top1=mean(tops), scored_ties=sum(p.gap == 0 for p in pairs))


def by_margin(pairs: Iterable[JudgedPair]) -> list[dict[str, Any]]:
    """Accuracy over the strict pairs of each tier distance, nearest first: far apart should be easier to tell."""
    parts = _parted(strict(pairs), key=lambda p: p.margin)
    return [{"margin": m, "accuracy": accuracy_of(part), "pairs": len(part)} for m, part in sorted(parts.items())]


def by_annotator(pairs: Iterable[JudgedPair]) -> list[dict[str, Any]]:
    """Accuracy over the strict pairs of each annotator, most pairs first; None for one who judged ties only."""
    parts = _parted(pairs, key=lambda p: p.annotator)
    rows = [
        {"annotator": name, "accuracy": accuracy_of(part), "pairs": len(strict(part))} for name, part in parts.items()
    ]
    return sorted(rows, key=lambda row: (-row["pairs"], row["annotator"]))


def annotator_agreement(pairs: Iterable[JudgedPair]) -> dict[str, Any] | None:
    """How often two people agree on which of two responses is better; None where no two judged the same pair strictly.

    `agreement` is the share of meetings that agree; a meeting is two annotators who both preferred one of the same two
    responses, and `pairs` counts them. It is the chance that one person's preference is another's: what a model scores
    that is exactly as good at it as one more annotator, so the number to hold an accuracy against. It is no hard limit
    (a model that knows the majority's preference agrees with single people more often than they do with each other),
    it is not corrected for chance (blind guesses agree half the time), it leaves out whoever saw a tie, and it knows
    only the prompts that several people judged, those with more people counting more.
    """
    first_wins: defaultdict[tuple[int, int, int], Counter[bool]] = defaultdict(Counter)
    for p in strict(pairs):
        first, second = sorted((p.chosen, p.rejected))
        first_wins[p.prompt, first, second][p.chosen == first] += 1
    votes = [(count[True], count[False]) for count in first_wins.values()]
    meetings = sum(comb(a + b, 2) for a, b in votes)
    agreeing = sum(comb(a, 2) + comb(b, 2) for a, b in votes)
    return {"agreement": agreeing / meetings, "pairs": meetings} if meetings else None


def _parted(pairs: Iterable[JudgedPair], *, key: Callable[[JudgedPair], Any]) -> dict[Any, list[JudgedPair]]:
    parts: defaultdict[Any, list[JudgedPair]] = defaultdict(list)
    for pair in pairs:
        parts[key(pair)].append(pair)
    return parts


def _top1(ranking: Ranking, scores: Sequence[float]) -> float:
    ranked = [n for tier in ranking.tiers for n in tier]
    best = max(scores[n - 1] for n in ranked)
    winners = [n for n in ranked if scores[n - 1] == best]
    return sum(n in ranking.tiers[0] for n in winners) / len(winners)
