"""Rows for TRL's RewardTrainer and DPOTrainer: preference pairs, conversational, with the prompt on its own.

`prompt`, `chosen` and `rejected` are message lists, because TRL finds the prompt of plain texts by their longest common
beginning, which cuts answers that start alike. `margin` is on every row: TRL's collator looks for it on the first only.
Source: TRL documentation, "Dataset formats and types", preference with explicit prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.comparisons import Comparison
from data.json_lines import encode_json
from data.records import PromptRecord


def trl_lines(record: PromptRecord, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """One line of JSON for each pair: `prompt`, `chosen`, `rejected`, `margin`, `weight`, `prompt_id`.

    TRL ignores `weight` (1 / pairs of the ranking) and `prompt_id`; they are for the reader and for us. Each text is
    encoded once, not once a pair: K responses make K(K-1) places in the rows.
    """
    prompt = encode_json([{"role": m.role, "content": m.content} for m in record.prompt])
    answers = [encode_json([{"role": "assistant", "content": response.text}]) for response in record.responses]
    prompt_id = encode_json(record.id)
    for pair in comparisons:
        yield (
            f'{{"prompt": {prompt}, "chosen": {answers[pair.chosen - 1]}, "rejected": {answers[pair.rejected - 1]}, '
            f'"margin": {float(pair.margin)}, "weight": {pair.weight}, "prompt_id": {prompt_id}}}'
        )
