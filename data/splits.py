"""Split prompts into train and eval by hash, so that equal prompts are always on the same side."""

from __future__ import annotations

from data.errors import BadInput
from data.records import PromptRecord

TRAIN, EVAL = "train", "eval"


def check_eval_fraction(fraction: float) -> float:
    """A share of the prompts, at least 0 and below 1. Raises BadInput."""
    if not 0 <= fraction < 1:
        raise BadInput(f"--eval-fraction {fraction}: a share of the prompts is at least 0 and below 1. Try 0.1.")
    return fraction


def split_of(record: PromptRecord, eval_fraction: float) -> str:
    """`train` or `eval`, by the prompt alone: its responses, its id and its place in the file do not matter.

    A larger fraction only ever moves prompts from train to eval.
    """
    place = int(record.prompt_hash[:13], 16) / 16**13  # 52 bits: exact in a float, in [0, 1)
    return EVAL if place < eval_fraction else TRAIN
