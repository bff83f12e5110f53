"""An evaluation as the pages show it."""

from __future__ import annotations

from typing import Any

import pytest

from annotate.run_view import evaluation_view
from tests.annotate.made_runs import EVALUATION

NEWER = {
    "accuracy_with_ties": 0.7,
    "tie_threshold": 0.25,
    "kendall_tau_b": 0.4,
    "kendall_rankings": 5,
    "annotator_agreement": {"agreement": 0.8, "pairs": 20},
    "calibration": {
        "ece": 0.1,
        "bins": [{"predicted": 0.6, "observed": 0.6, "pairs": 6}, {"predicted": 0.9, "observed": 0.7, "pairs": 6}],
    },
    "by_margin": [{"margin": 1, "accuracy": 0.6, "pairs": 1200}, {"margin": 2, "accuracy": 0.9, "pairs": 4}],
    "by_annotator": [
        {"annotator": "<script>x</script>", "accuracy": 0.7, "pairs": 9},
        {"annotator": "cy", "accuracy": None, "pairs": 0},
    ],
    "length": {"pearson": 0.1, "spearman": 0.2, "within_prompt": 0.3, "prompts": 40},
}


def view(**changes: Any) -> str:
    return evaluation_view({**EVALUATION, "eval": {**EVALUATION["eval"], **NEWER, **changes}})


def test_the_model_stands_between_the_longer_wins_and_two_people() -> None:
    shown = view()
    assert [shown.index(name) for name in ("This model", "The longer wins", "Two people")] == sorted(
        shown.index(name) for name in ("This model", "The longer wins", "Two people")
    )
    assert '<span class="value">80.0%</span>' in shown
    assert "it was the same one 80.0% of the time (20 times in all)" in shown


def test_the_numbers_are_explained_to_a_newcomer() -> None:
    shown = view()
    assert "<dt>Whole order</dt><dd>0.40 (Kendall&#x27;s tau: 1 is people&#x27;s order, 0 is chance" in shown
    assert "75% sure on average and right in 65%: too sure of itself; off by 10 points on average" in shown
    assert "<dt>With ties counted</dt><dd>70.0%, scores no more than 0.25 apart taken as a tie</dd>" in shown
    assert "70.0%, equal scores taken as a tie" in view(tie_threshold=0.0)
    assert "<dt>Follows length</dt><dd>0.30 (1: always prefers the longer response" in shown


@pytest.mark.parametrize(
    ("observed", "words"), [(0.7, "too sure of itself"), (0.8, "about as it should"), (0.95, "too unsure")]
)
def test_certainty_is_judged_both_ways(observed: float, words: str) -> None:
    bins = [{"predicted": 0.8, "observed": observed, "pairs": 3}]
    assert words in view(calibration={"ece": abs(0.8 - observed), "bins": bins})


@pytest.mark.parametrize(
    ("within", "prompts", "warned"),
    [(0.6, 40, "longer"), (-0.6, 40, "shorter"), (0.5, 40, None), (0.9, 4, None), (None, 0, None)],
)
def test_rewards_that_follow_length_bring_a_warning(within: float | None, prompts: int, warned: str | None) -> None:
    shown = view(length={"pearson": 0.9, "spearman": 0.9, "within_prompt": within, "prompts": prompts})
    assert ('class="note warning"' in shown) == (warned is not None)
    if warned:
        assert f"the {warned} response tends to score higher" in shown


def test_accuracy_by_margin_is_drawn_as_bars() -> None:
    shown = view()
    assert (
        '<span class="name">1 rank (1,200 pairs)</span><span class="track"><span style="width:60.0%"></span>' in shown
    )
    assert '<span class="name">2 ranks (4 pairs)</span>' in shown
    assert '<span class="value">60.0%</span>' in shown


def test_annotators_stand_in_a_fold_with_their_names_as_text() -> None:
    shown = view()
    fold = shown[shown.index("<details><summary>By annotator") :]
    assert "<td>&lt;script&gt;x&lt;/script&gt;</td><td>70.0%</td><td>9</td>" in fold
    assert "<td>cy</td><td>ties only</td><td>0</td>" in fold
    assert "<script" not in shown


def test_nothing_is_said_of_what_was_not_counted() -> None:
    shown = view(
        annotator_agreement=None,
        kendall_tau_b=None,
        accuracy_with_ties=None,
        calibration={"ece": None, "bins": []},
        by_margin=[],
        by_annotator=[],
        length={"pearson": None, "spearman": None, "within_prompt": None, "prompts": 0},
    )
    assert shown == evaluation_view(EVALUATION)


def test_an_evaluation_of_an_older_run_still_shows() -> None:
    shown = evaluation_view(EVALUATION)
    assert "75.0%" in shown
    assert "Two people" not in shown
    assert "None" not in shown
