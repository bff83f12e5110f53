"""Count what is in a set of records: the numbers that a report, a manifest and a dataset card show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data.records import AnnotatorRanking, PromptRecord, SetAside


@dataclass
class Tally:
    """Running totals. `responses_per_prompt`: how many prompts have K responses. `annotators`: rankings of each."""

    prompts: int = 0
    responses: int = 0
    responses_per_prompt: Counter[int] = field(default_factory=Counter)
    rankings: int = 0
    rankings_with_ties: int = 0
    rankings_partial: int = 0
    rankings_with_bar: int = 0
    annotators: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    flagged: int = 0

    def add(self, record: PromptRecord) -> None:
        """Count a prompt, its responses and every decision about it."""
        self.prompts += 1
        self.responses += len(record.responses)
        self.responses_per_prompt[len(record.responses)] += 1
        self.add_decisions((*record.rankings, *record.set_aside), len(record.responses))

    def add_decisions(self, decisions: Iterable[AnnotatorRanking | SetAside], responses: int) -> None:
        """Count decisions about a prompt of `responses` responses."""
        for decision in decisions:
            if isinstance(decision, SetAside):
                self.skipped += decision.status == "skipped"
                self.flagged += decision.status == "flagged"
                continue
            tiers = decision.ranking.tiers
            self.rankings += 1
            self.annotators[decision.annotator] += 1
            self.rankings_with_ties += any(len(tier) > 1 for tier in tiers)
            self.rankings_partial += sum(map(len, tiers)) < responses
            self.rankings_with_bar += decision.ranking.bar is not None
