"""How well rewards agree with the rankings, beside the baseline that every reward model must beat: the longer wins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from torch import nn

from data.comparisons import Comparison
from data.notation import Ranking
from train.groups import Group
from train.rewards import Layout, score_groups


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
    gaps = _strict_gaps(groups, scores)
    wins = [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]
    tops = [
        _top1(ranking, own)
        for g, own in zip(groups, scores, strict=True)
        for ranking in g.rankings
        if len(ranking.tiers) > 1
    ]
    return Agreement(accuracy=_mean(wins), top1=_mean(tops), scored_ties=gaps.count(0))


def evaluate(model: nn.Module, groups: Sequence[Group], layout: Layout) -> dict[str, Any]:
    """Loss (as in training), accuracy and top-1 of a reward model, and the same of "the longer wins".

    Annotated ties count in the loss only; `ties` says how many, `tie_gap` how far apart their scores are on average.
    """
    training = model.training
    model.eval()
    by_number = dict(score_groups(model, groups, layout))
    model.train(training)
    scores = [by_number[i] for i in range(len(groups))]
    gaps = _strict_gaps(groups, scores)
    ties = [abs(gap) for gap, c in _gaps(groups, scores) if c.margin == 0]
    flat = [s for own in scores for s in own]
    return {
        "prompts": len(groups),
        "responses": len(flat),
        "pairs": len(gaps),
        "ties": len(ties),
        "loss": _loss(groups, scores),
        **asdict(agreement(groups, scores)),
        "longer_wins": asdict(agreement(groups, [g.chars for g in groups])),
        "margin": _mean(gaps),
        "tie_gap": _mean(ties),
        "reward_mean": fmean(flat),
        "reward_std": pstdev(flat),
    }


def _gaps(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> Iterator[tuple[float, Comparison]]:
    """Every comparison with its score difference, chosen minus rejected."""
    for g, own in zip(groups, scores, strict=True):
        yield from ((own[c.chosen - 1] - own[c.rejected - 1], c) for c in g.comparisons)


def _strict_gaps(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> list[float]:
    return [gap for gap, c in _gaps(groups, scores) if c.margin > 0]


def _loss(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> float:
    """`losses.pairwise_loss` over all comparisons."""
    found = list(_gaps(groups, scores))
    total = sum(c.weight * (c.preference * _softplus(-gap) + (1 - c.preference) * _softplus(gap)) for gap, c in found)
    return total / sum(c.weight for _, c in found)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _top1(ranking: Ranking, scores: Sequence[float]) -> float:
    ranked = [n for tier in ranking.tiers for n in tier]
    best = max(scores[n - 1] for n in ranked)
    winners = [n for n in ranked if scores[n - 1] == best]
    return sum(n in ranking.tiers[0] for n in winners) / len(winners)


def _mean(items: Sequence[float]) -> float | None:
    return fmean(items) if items else None
