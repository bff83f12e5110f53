"""Whether differences of rewards mean what they say: as probabilities of a preference, and as ties."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from train.judged import JudgedPair

BINS = 10
"""Of equal width, over the predictions 0.5 to 1."""


def calibration(pairs: Iterable[JudgedPair], *, scale: float = 1.0) -> dict[str, Any]:
    """How far predicted probabilities are from what people chose: expected calibration error and its bins.

    A pair's prediction is s(scale |gap|), s the logistic function: the probability, under Bradley-Terry, that the
    response the model prefers is the better one. Observed is 1 where people preferred it too, 0 where they preferred
    the other, 0.5 for a tie of theirs or of the scores. `ece` is the mean over the pairs of |predicted - observed| of
    their bin (Guo et al. 2017, equation 3); `bins` holds the means of each bin that has pairs, least sure first.
    """
    parts: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for p in pairs:
        predicted = 1 / (1 + math.exp(-abs(scale * p.gap)))
        parts[min(int((predicted - 0.5) * 2 * BINS), BINS - 1)].append((predicted, _observed(p)))
    bins = [
        {"predicted": fmean(p for p, _ in part), "observed": fmean(o for _, o in part), "pairs": len(part)}
        for part in parts
        if part
    ]
    count = sum(b["pairs"] for b in bins)
    distance = sum(b["pairs"] * abs(b["predicted"] - b["observed"]) for b in bins)
    return {"ece": distance / count if count else None, "bins": bins}


def accuracy_with_ties(pairs: Sequence[JudgedPair]) -> tuple[float | None, float | None]:
    """Pair accuracy with people's ties as a third answer, and the threshold it holds at; None of nothing.

    The model's answer is a tie where |gap| <= threshold, else the higher score; right is what the ranking says. The
    threshold is the smallest of those with the most right answers, found exactly: only 0 and the gaps themselves can
    be. As it is chosen on the pairs it is measured on, the number is a little kind to the model.

    Source: Deutsch, Foster and Freitag 2023 ("Ties Matter"), section 5, tie calibration.
    """
    if not pairs:
        return None, None
    right = sum(p.margin > 0 and p.gap > 0 for p in pairs)
    best, threshold = right, 0.0
    for size, equal in groupby(sorted(pairs, key=_size), key=_size):
        right += sum(1 if p.margin == 0 else -(p.gap > 0) for p in equal)  # now these are ties to the model
        if right > best:
            best, threshold = right, size
    return best / len(pairs), threshold


def _size(pair: JudgedPair) -> float:
    return abs(pair.gap)


def _observed(pair: JudgedPair) -> float:
    if pair.margin == 0 or pair.gap == 0:
        return 0.5
    return 1.0 if pair.gap > 0 else 0.0
