"""Each ranking's own comparisons beside the difference of the scores: what every measure of agreement counts.

A group's `comparisons` are what training learns from, and may be vote shares. People are agreed with one ranking at a
time, so the rankings are expanded here again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from data.comparisons import expand
from train.groups import Group


@dataclass(frozen=True)
class JudgedPair:
    """One comparison of one ranking.

    `prompt`: the group's number. `chosen`, `rejected`: response numbers, 1…K. `margin`: tier distance, 0 for a tie.
    `gap`: score of `chosen` minus score of `rejected`.
    """

    prompt: int
    annotator: str
    chosen: int
    rejected: int
    margin: int
    gap: float


def judged_pairs(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[JudgedPair]:
    """Every comparison of every ranking, ties included. `scores`: one list a group, one number a response."""
    return [
        JudgedPair(number, annotator, c.chosen, c.rejected, int(c.margin), own[c.chosen - 1] - own[c.rejected - 1])
        for number, (g, own) in enumerate(zip(groups, scores, strict=True))
        for ranking, annotator in zip(g.rankings, g.annotators or ("",) * len(g.rankings), strict=True)
        for c in expand(ranking, len(g.rows)).comparisons
    ]


def strict(pairs: Iterable[JudgedPair]) -> list[JudgedPair]:
    """The pairs of which one was judged better."""
    return [p for p in pairs if p.margin]


def accuracy_of(pairs: Iterable[JudgedPair]) -> float | None:
    """Share of the strict pairs whose chosen response scores higher; equal scores count one half."""
    return mean([1.0 if p.gap > 0 else 0.5 if p.gap == 0 else 0.0 for p in strict(pairs)])


def mean(items: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return fmean(items) if items else None
