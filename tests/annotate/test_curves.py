"""The drawing of a run's curves."""

from __future__ import annotations

import math
import re

import pytest

from annotate.curves import curves, nice_top, smoothed


def test_nothing_is_drawn_before_there_is_a_line() -> None:
    assert curves([]) == ""
    assert curves([{"step": 1, "loss": 0.7, "accuracy": 0.5}]) == ""


def test_loss_and_accuracy_are_drawn_with_marks_for_held_out_prompts() -> None:
    rows = [{"step": s, "loss": 1 / s, "accuracy": s / 10} for s in range(1, 11)]
    drawn = curves([*rows, {"step": 10, "eval_loss": 0.3, "eval_accuracy": 0.9}])
    assert drawn.count("<svg") == 2
    assert drawn.count("<circle") == 2
    assert "0.900 held out" in drawn


def test_every_point_lies_inside_the_drawing() -> None:
    rows = [{"step": s, "loss": abs(math.sin(s)) * 37, "accuracy": 1.0} for s in range(1, 300)]
    places = re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]*)"', curves(rows))))
    assert len(places) == 4 * 299
    assert all(40 <= float(x) <= 410 and 10 <= float(y) <= 148 for x, y in places)


def test_numbers_that_are_none_or_not_finite_are_passed_over() -> None:
    rows = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": None},
        {"step": 4, "loss": 0.4},
    ]
    assert len(re.findall(r"[\d.]+,[\d.]+", re.findall(r'class="raw" points="([^"]*)"', curves(rows))[0])) == 2


def test_a_short_curve_is_not_smoothed_and_a_long_one_is() -> None:
    short = [(float(i), float(i % 2)) for i in range(10)]
    assert smoothed(short) == short
    long = smoothed([(float(i), float(i % 2)) for i in range(300)])
    assert all(0.4 < y < 0.6 for _, y in long[100:])


@pytest.mark.parametrize(("highest", "top"), [(0, 1), (0.7, 0.8), (0.69, 0.8), (1, 1), (1.1, 1.2), (9, 10), (37, 40)])
def test_a_scale_ends_on_a_short_number(highest: float, top: float) -> None:
    assert nice_top(highest) == pytest.approx(top)
