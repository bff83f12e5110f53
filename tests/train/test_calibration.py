"""Probabilities and ties that follow from differences of scores."""

from __future__ import annotations

import math
from random import Random

import pytest

from train.calibration import BINS, accuracy_with_ties, calibration
from train.judged import JudgedPair


def pair(gap: float, margin: int = 1) -> JudgedPair:
    return JudgedPair(prompt=0, annotator="ann", chosen=1, rejected=2, margin=margin, gap=gap)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_the_calibration_error_is_counted_by_hand() -> None:
    # Predicted 0.82 three times, of which people prefer the same twice; 0.57 once, for a tie.
    pairs = [pair(logit(0.82)), pair(logit(0.82)), pair(-logit(0.82)), pair(logit(0.57), margin=0)]
    found = calibration(pairs)
    assert [(b["pairs"], b["predicted"], b["observed"]) for b in found["bins"]] == [
        (1, pytest.approx(0.57), 0.5),
        (3, pytest.approx(0.82), pytest.approx(2 / 3)),
    ]
    assert found["ece"] == pytest.approx((0.07 + 3 * (0.82 - 2 / 3)) / 4)


def test_equal_scores_are_right_half_the_time() -> None:
    assert calibration([pair(0.0)]) == {"ece": 0.0, "bins": [{"predicted": 0.5, "observed": 0.5, "pairs": 1}]}


def test_huge_gaps_fall_in_the_last_bin() -> None:
    found = calibration([pair(1e6), pair(-1e6)])
    assert found["bins"] == [{"predicted": 1.0, "observed": 0.5, "pairs": 2}]
    assert found["ece"] == 0.5


def test_judgements_drawn_from_the_predictions_are_calibrated_and_doubled_rewards_are_too_sure() -> None:
    random = Random(1)
    gaps = [random.gauss(0, 1.5) for _ in range(20_000)]
    drawn = [gap if random.random() < 1 / (1 + math.exp(-gap)) else -gap for gap in gaps]
    honest, loud = calibration(map(pair, drawn)), calibration(pair(2 * gap) for gap in drawn)
    assert len(honest["bins"]) == BINS
    assert honest["ece"] < 0.02
    assert loud["ece"] > 0.08
    assert all(b["predicted"] > b["observed"] for b in loud["bins"])


def test_nothing_has_no_error() -> None:
    assert calibration([]) == {"ece": None, "bins": []}
    assert accuracy_with_ties([]) == (None, None)


def test_the_tie_threshold_is_chosen_by_hand() -> None:
    # Ties at 0.1 and 0.4, won at 0.3 and 1, lost at 0.2: up to 0.1, one tie and two wins are right.
    pairs = [pair(0.1, margin=0), pair(-0.4, margin=0), pair(0.3), pair(1.0), pair(-0.2)]
    assert accuracy_with_ties(pairs) == (3 / 5, 0.1)
    # With a third tie at 0.4 it pays to give up the win at 0.3.
    assert accuracy_with_ties([*pairs, pair(0.4, margin=0)]) == (4 / 6, 0.4)


def test_without_peoples_ties_the_threshold_is_nothing_and_equal_scores_are_wrong() -> None:
    assert accuracy_with_ties([pair(0.5), pair(-0.5), pair(0.0)]) == (1 / 3, 0.0)
    assert accuracy_with_ties([pair(0.0, margin=0)]) == (1.0, 0.0)


def test_no_other_threshold_does_better() -> None:
    random = Random(5)
    for _ in range(200):
        pairs = [
            pair(random.choice([-2, -1, -0.5, 0, 0.5, 1, 2, random.gauss(0, 1)]), margin=random.randint(0, 2))
            for _ in range(random.randint(1, 12))
        ]

        def right(threshold: float, pairs: list[JudgedPair] = pairs) -> float:
            return sum(abs(p.gap) <= threshold if p.margin == 0 else p.gap > threshold for p in pairs) / len(pairs)

        accuracy, threshold = accuracy_with_ties(pairs)
        assert accuracy is not None and threshold is not None
        assert accuracy == right(threshold)
        tried = [0.0, *(abs(p.gap) * f for p in pairs for f in (0.999, 1, 1.001))]
        assert accuracy == max(map(right, tried))
        assert threshold == min(t for t in tried if right(t) == accuracy)
