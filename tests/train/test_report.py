"""What a run says of itself: one line, and the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.judged_groups import group
from train.evaluation import measure
from train.report import in_words, write_card

GROUPS = [
    group("A1>A2>A3", "A2>A1=A3", chars=(90, 40, 10), by=("ann", "bob | <b>*x*</b>")),
    group("A1>A2", chars=(30, 50)),
]
FOUND = measure(GROUPS, [[1.0, 0.4, -0.6], [0.2, 0.3]])
OLD = {
    "prompts": 3,
    "pairs": 12,
    "ties": 1,
    "loss": 0.5,
    "accuracy": 0.75,
    "top1": None,
    "longer_wins": {"accuracy": 0.5, "top1": 0.4, "scored_ties": 2},
}


@pytest.fixture
def card(tmp_path: Path) -> Any:
    """Writes a run's card and reads it."""

    def write(found: dict[str, Any] | None, **config: Any) -> str:
        asked = {"model": "smollm2-135m", "base": "/base", "data": "/data", "manifest_sha256": "abc"}
        (tmp_path / "config.json").write_text(json.dumps({**asked, **config}))
        (tmp_path / "eval.json").write_text(json.dumps({"eval": found, "groups": {"train": {"prompts": 3}}}))
        write_card(tmp_path, needs_resize=False)
        return (tmp_path / "README.md").read_text()

    return write


def test_one_line_names_accuracy_tau_calibration_and_loss() -> None:
    assert in_words(FOUND) == (
        "held-out pair accuracy 0.667 on 6 pairs of 2 prompts (the longer wins: 0.667), "
        f"Kendall tau {FOUND['kendall_tau_b']:.3f}, calibration error {FOUND['calibration']['ece']:.3f}, "
        f"loss {FOUND['loss']:.4f}"
    )


def test_an_older_evaluation_and_none_have_a_line_too() -> None:
    assert (
        in_words(OLD) == "held-out pair accuracy 0.750 on 12 pairs of 3 prompts (the longer wins: 0.500), loss 0.5000"
    )
    assert in_words(None) == in_words({**OLD, "accuracy": None}) == "no held-out comparison"


def test_the_card_shows_every_number_and_no_python(card: Any) -> None:
    text = card(FOUND)
    shown = text.split("## Evaluation")[1].split("## What was read")[0]
    assert not set("{}[]'") & set(shown)
    for row in (
        f"| accuracy | {FOUND['accuracy']:.4f} |",
        f"| kendall tau b | {FOUND['kendall_tau_b']:.4f} |",
        f"| calibration: ece | {FOUND['calibration']['ece']:.4f} |",
        f"| length: within prompt | {FOUND['length']['within_prompt']:.4f} |",
        f"| annotator agreement: agreement | {FOUND['annotator_agreement']['agreement']:.4f} |",
        f"| longer wins: accuracy | {FOUND['longer_wins']['accuracy']:.4f} |",
        "| margin | accuracy | pairs |\n| --- | --- | --- |\n| 1 | 0.6000 | 5 |\n| 2 | 1.0000 | 1 |",
        "| annotator | accuracy | pairs |\n| --- | --- | --- |\n| ann | 0.7500 | 4 |",
    ):
        assert row in shown, row


def test_a_name_is_text_in_the_cards_table(card: Any) -> None:
    assert r"| bob \| &lt;b&gt;\*x\*&lt;/b&gt; | 0.5000 | 2 |" in card(FOUND)


def test_what_cannot_be_counted_is_said_in_words(card: Any) -> None:
    text = card(measure([group("A1=A2", chars=(3, 3))], [[0.0, 1.0]]))
    assert "| accuracy | nothing to count |" in text
    assert "| annotator agreement | nothing to count |" in text
    assert "| ann | nothing to count | 0 |" in text
    assert "None" not in text


@pytest.mark.parametrize("found", [None, OLD])
def test_a_card_without_the_newer_numbers_is_whole(card: Any, found: dict[str, Any] | None) -> None:
    text = card(found)
    assert ("| none | no held-out prompts |" in text) == (found is None)
    assert "annotator" not in text


def test_the_card_tells_how_to_merge_and_warns_of_four_bits(card: Any) -> None:
    assert "python -m train merge --model RUN --output DIR" in card(FOUND)
    assert "4 bits" not in card(FOUND, load_in_4bit=False)
    assert "4 bits" in card(FOUND, load_in_4bit=True)


def test_the_card_names_the_loss_it_was_trained_with(card: Any) -> None:
    assert "pairwise Bradley-Terry loss" in card(FOUND)
    assert "Plackett-Luce loss" in card(FOUND, loss="plackett_luce")


def test_the_card_shows_the_drawing_that_is_there(card: Any, tmp_path: Path) -> None:
    assert "eval.png" not in card(FOUND)
    (tmp_path / "eval.png").write_bytes(b"")
    assert "(eval.png)" in card(FOUND)
