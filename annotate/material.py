"""What a training would learn from, counted before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from data.comparisons import expand
from data.records import PromptRecord
from data.splits import EVAL, split_of


@dataclass
class Material:
    """Counts over a project. A pair has a winner; ties are counted beside the pairs."""

    prompts: int = 0
    """Ranked prompts to learn from."""
    pairs: int = 0
    held_out_prompts: int = 0
    """Ranked prompts kept for the evaluation."""
    held_out_pairs: int = 0
    ties: int = 0
    unranked: int = 0
    """Pairs with a response that its annotator left unranked: nobody compared them."""
    without_ranking: int = 0
    """Prompts nobody ranked."""

    def add(self, record: PromptRecord, *, eval_fraction: float) -> None:
        """Count one prompt."""
        expansions = [expand(r.ranking, len(record.responses)) for r in record.rankings]
        pairs = sum(c.margin > 0 for e in expansions for c in e.comparisons)
        self.ties += sum(c.margin == 0 for e in expansions for c in e.comparisons)
        self.unranked += sum(e.unranked for e in expansions)
        self.without_ranking += not record.rankings
        if split_of(record, eval_fraction) == EVAL:
            self.held_out_prompts += bool(record.rankings)
            self.held_out_pairs += pairs
        else:
            self.prompts += bool(record.rankings)
            self.pairs += pairs


def material_of(records: Iterable[PromptRecord], *, eval_fraction: float) -> Material:
    """Count what the records hold; `eval_fraction`: the share of the prompts held out, 0 to 1."""
    material = Material()
    for record in records:
        material.add(record, eval_fraction=eval_fraction)
    return material
