"""What a training would learn from, counted before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from data.comparisons import Expansion, expand, votes
from data.records import PromptRecord
from data.splits import EVAL, split_of
from data.verdicts import acceptable_shares, best_responses


@dataclass
class Side:
    """Counts of the prompts to learn from, or of those held out. A pair has a winner."""

    different: int = 0
    """Different prompts, ranked or not."""
    prompts: int = 0
    """Ranked prompts."""
    pairs: int = 0
    best: int = 0
    """Prompts with a best response that is not behind the acceptable bar."""
    acceptable: int = 0
    """Responses that most annotators who set a bar put before it."""
    unacceptable: int = 0
    """Responses that most put behind it."""
    disputed: int = 0
    """Responses that as many put before it as behind it."""

    @property
    def judged(self) -> int:
        """Responses that somebody put before or behind a bar."""
        return self.acceptable + self.unacceptable + self.disputed


@dataclass
class Material:
    """Counts over a project; ties are counted beside the pairs."""

    learned: Side = field(default_factory=Side)
    held_out: Side = field(default_factory=Side)
    """Of the prompts kept for the evaluation."""
    repeated: int = 0
    """Prompts that are there already."""
    ties: int = 0
    unranked: int = 0
    """Pairs with a response that its annotator left unranked: nobody compared them."""
    without_ranking: int = 0
    """Prompts nobody ranked."""
    without_comparison: int = 0
    """Ranked prompts in which no response was compared with another."""
    without_bar: int = 0
    """Ranked prompts in which nobody set an acceptable bar."""
    unacceptable: int = 0
    """Prompts whose best response most of those who set an acceptable bar put behind it."""
    _seen: set[str] = field(default_factory=set)

    def add(self, record: PromptRecord, *, eval_fraction: float, soft: bool) -> None:
        """Count one prompt."""
        expansions = _expansions(record, soft=soft)
        comparisons = [c for e in expansions for c in e.comparisons]
        ties = sum(c.tie == 1 for c in comparisons)
        self.ties += ties
        self.unranked += sum(e.unranked for e in expansions)
        self.without_ranking += not record.rankings
        side = self.held_out if split_of(record, eval_fraction) == EVAL else self.learned
        is_new = record.prompt_hash not in self._seen
        self._seen.add(record.prompt_hash)
        side.different += is_new
        self.repeated += not is_new
        side.prompts += bool(record.rankings)
        side.pairs += len(comparisons) - ties
        self._add_best(record, side)

    def _add_best(self, record: PromptRecord, side: Side) -> None:
        """Count what SFT and KTO learn from: a best response, responses before and behind the bar."""
        rankings = [r.ranking for r in record.rankings]
        shares = acceptable_shares(rankings)
        side.acceptable += sum(share > 0.5 for share in shares.values())
        side.unacceptable += sum(share < 0.5 for share in shares.values())
        side.disputed += sum(share == 0.5 for share in shares.values())
        best = best_responses(rankings)
        has_best = any(shares.get(number, 1) >= 0.5 for number in best)
        side.best += has_best
        self.unacceptable += bool(best) and not has_best
        self.without_bar += bool(rankings) and not shares
        self.without_comparison += bool(rankings) and not best


def material_of(records: Iterable[PromptRecord], *, eval_fraction: float, soft: bool = False) -> Material:
    """Count what the records hold; `eval_fraction`: the share of the prompts held out, 0 to 1.

    `soft`: several annotators' votes on a pair are one pair.
    """
    material = Material()
    for record in records:
        material.add(record, eval_fraction=eval_fraction, soft=soft)
    return material


def _expansions(record: PromptRecord, *, soft: bool) -> list[Expansion]:
    rankings = [r.ranking for r in record.rankings]
    if not soft:
        return [expand(ranking, len(record.responses)) for ranking in rankings]
    return [votes(rankings, len(record.responses))] if rankings else []
