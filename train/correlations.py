"""Correlations of rewards: with the rankings, and with the length of the responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from scipy.stats import kendalltau, pearsonr, spearmanr

from train.groups import Group
from train.judged import mean

Numbers = Sequence[float]
Measure = Callable[[Numbers, Numbers], Any]


def ranking_correlation(groups: Sequence[Group], scores: Sequence[Numbers]) -> tuple[float | None, int]:
    """Mean Kendall tau-b of each ranking with the scores of its ranked responses, and how many rankings have one.

    Each annotator's ranking of a prompt is one. One whose responses are all tied has none, nor one whose scores are all
    equal.
    Source: Kendall 1945, tau-b, which takes account of ties on both sides.
    """
    found = [
        _of_orders(kendalltau, [-rank for rank in ranking.ranks.values()], [own[n - 1] for n in ranking.ranks])
        for g, own in zip(groups, scores, strict=True)
        for ranking in g.rankings
    ]
    defined = [tau for tau in found if tau is not None]
    return mean(defined), len(defined)


def length_correlation(groups: Sequence[Group], scores: Sequence[Numbers]) -> dict[str, Any]:
    """How closely rewards follow the length in characters.

    `pearson`, `spearman`: over all responses. `within_prompt`: mean over the prompts of Spearman's correlation of a
    prompt's own responses, which longer prompts' longer responses do not blur; `prompts` counts those that have one.
    """
    lengths = [float(c) for g in groups for c in g.chars]
    rewards = [s for own in scores for s in own]
    each = [_of_orders(spearmanr, g.chars, own) for g, own in zip(groups, scores, strict=True)]
    defined = [rho for rho in each if rho is not None]
    return {
        "pearson": _correlation(pearsonr, lengths, rewards),
        "spearman": _correlation(spearmanr, lengths, rewards),
        "within_prompt": mean(defined),
        "prompts": len(defined),
    }


def _of_orders(measure: Measure, xs: Numbers, ys: Numbers) -> float | None:
    """A rank correlation, of a few numbers again and again: only their orders matter, and there are few of those."""
    return _remembered(measure, _places(xs), _places(ys))


def _places(xs: Numbers) -> tuple[int, ...]:
    """The numbers' places, the lowest first; equal numbers share one."""
    distinct = {x: place for place, x in enumerate(sorted(set(xs)))}
    return tuple(distinct[x] for x in xs)


# A call takes 0.4 ms, a look-up none: an evaluation of thousands of prompts would wait seconds on them.
@lru_cache(maxsize=10_000)
def _remembered(measure: Measure, xs: tuple[int, ...], ys: tuple[int, ...]) -> float | None:
    return _correlation(measure, xs, ys)


def _correlation(measure: Measure, xs: Numbers, ys: Numbers) -> float | None:
    """None where one side does not vary."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return float(measure(xs, ys).statistic)
