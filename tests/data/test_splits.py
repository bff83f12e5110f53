"""Splits by hash of the prompt."""

from __future__ import annotations

import math

import pytest

from data.errors import BadInput
from data.records import read_record
from data.splits import check_eval_fraction, split_of

RECORDS = [read_record({"prompt": f"Question {i}?", "responses": ["a", "b"]}, where="test") for i in range(2000)]


def test_about_the_asked_share_of_prompts_goes_to_eval() -> None:
    share = sum(split_of(record, 0.1) == "eval" for record in RECORDS) / len(RECORDS)
    assert 0.07 < share < 0.13


def test_the_split_depends_on_the_prompt_alone() -> None:
    for record in RECORDS[:50]:
        row = {"id": "other", "prompt": record.prompt[0].content, "responses": ["x", "y", "z"], "metadata": {"a": 1}}
        assert split_of(record, 0.5) == split_of(read_record(row, where="test"), 0.5)


def test_a_larger_fraction_only_moves_prompts_to_eval() -> None:
    for record in RECORDS[:200]:
        splits = [split_of(record, fraction) for fraction in (0.0, 0.1, 0.3, 0.6, 0.99)]
        assert splits == sorted(splits, reverse=True), "train comes before eval"
        assert splits[0] == "train"


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(BadInput, match="--eval-fraction"):
        check_eval_fraction(fraction)
