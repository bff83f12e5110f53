"""Prompt groups: a prompt's responses as token ids, and every comparison between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.comparisons import Comparison, Expansion, expand, votes
from data.notation import Ranking
from data.records import PromptRecord
from train.chat import encode_prompt, encode_response


@dataclass(frozen=True)
class Group:
    """One prompt. `rows[n - 1]`: the ids of prompt and response An, EOS last.

    `shared`: how many leading tokens all rows have in common as their prompt. `chars`: each response's length in
    characters. `rankings` with `annotators`, who made each. `comparisons`: what is learned from or measured on.
    """

    prompt_id: str
    rows: tuple[tuple[int, ...], ...]
    chars: tuple[int, ...]
    rankings: tuple[Ranking, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    shared: int = 0
    annotators: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the prompt once and of each response once."""
        return sum(map(len, self.rows)) - self.shared * (len(self.rows) - 1)


@dataclass(frozen=True)
class GroupReport:
    """What became of the records. Nothing is left out or cut without being counted here."""

    prompts: int = 0
    """Prompts read."""
    used: int = 0
    """Prompts with at least one comparison: what is learned from or measured on."""
    without_ranking: int = 0
    """Prompts nobody ranked: left out."""
    without_comparison: int = 0
    """Ranked prompts without a comparison: fewer than two responses placed, or only ties that are dropped. Left out."""
    only_ties: int = 0
    """Used prompts in which no response was preferred to another."""
    rankings: int = 0
    """Rankings of the used prompts."""
    responses: int = 0
    """Responses of the used prompts."""
    comparisons: int = 0
    """Comparisons of the used prompts, ties included."""
    ties: int = 0
    """Comparisons that are ties."""
    ties_dropped: int = 0
    """Ties left out, as --ties drop asks."""
    unranked_pairs: int = 0
    """Pairs of responses that an annotator left unranked: no comparison."""
    set_aside: int = 0
    """Times an annotator skipped or flagged a prompt."""
    prompts_cut: int = 0
    """Used prompts whose start was cut off to fit max_length."""
    responses_cut: int = 0
    """Responses longer than max_length by themselves: their start was cut off too."""
    boundaries_moved: int = 0
    """Used prompts whose tokens change when a response follows: the part they share is shorter than the prompt."""
    tokens: int = 0
    """Tokens of the used prompts, each prompt once and each response once."""
    tokens_expanded: int = 0
    """Tokens of the same comparisons as pairs of whole rows, as other trainers compute them."""
    longest_row: int = 0
    """Tokens of the longest row."""


def encode_records(
    records: Iterable[PromptRecord],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    soft: bool = False,
    ties: bool = True,
) -> tuple[list[Group], GroupReport]:
    """Groups of the records that have comparisons, and the account of all of them.

    `soft`: the annotators' vote shares as labels instead of each ranking's own pairs. `ties=False` drops (and counts)
    pairs that are tied.
    """
    counts = dict.fromkeys((f.name for f in fields(GroupReport)), 0)
    groups = []
    for record in records:
        counts["prompts"] += 1
        counts["set_aside"] += len(record.set_aside)
        expansions = _expansions(record, soft=soft, ties=ties)
        counts["ties_dropped"] += sum(e.ties_left_out for e in expansions)
        comparisons = tuple(c for e in expansions for c in e.comparisons)
        if not comparisons:
            counts["without_comparison" if record.rankings else "without_ranking"] += 1
            continue
        group = encode_group(record, tokenizer, max_length=max_length, comparisons=comparisons, counts=counts)
        groups.append(group)
        _count(group, counts)
        counts["unranked_pairs"] += sum(e.unranked for e in expansions)
    return groups, GroupReport(**counts)


def _expansions(record: PromptRecord, *, soft: bool, ties: bool) -> list[Expansion]:
    """One expansion a ranking, or with `soft` one of all votes."""
    rankings = [r.ranking for r in record.rankings]
    if not soft:
        return [expand(ranking, len(record.responses), ties=ties) for ranking in rankings]
    found = votes(rankings, len(record.responses))
    kept = [c for c in found.comparisons if ties or c.tie < 1]
    even = tuple(replace(c, weight=1 / len(kept)) for c in kept)
    return [Expansion(even, ties_left_out=len(found.comparisons) - len(kept), unranked=found.unranked)]


def _count(group: Group, counts: dict[str, int]) -> None:
    """Add a used prompt to the account."""
    tied = [c.tie == 1 for c in group.comparisons]
    lengths = [len(row) for row in group.rows]
    counts["used"] += 1
    counts["rankings"] += len(group.rankings)
    counts["responses"] += len(group.rows)
    counts["comparisons"] += len(group.comparisons)
    counts["ties"] += sum(tied)
    counts["only_ties"] += all(tied)
    counts["tokens"] += group.tokens
    counts["tokens_expanded"] += sum(lengths[c.chosen - 1] + lengths[c.rejected - 1] for c in group.comparisons)
    counts["longest_row"] = max(counts["longest_row"], *lengths)


def encode_group(
    record: PromptRecord,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    comparisons: tuple[Comparison, ...] = (),
    counts: dict[str, int] | None = None,
) -> Group:
    """One record as a group, with or without rankings. `counts` takes what was cut."""
    rows = [encode_response(tokenizer, record.prompt, r.text) for r in record.responses]
    prompt = encode_prompt(tokenizer, record.prompt)
    fitted = fit(rows, prompt=prompt, max_length=max_length, bos=tokenizer.bos_token_id)
    if counts is not None:
        counts["prompts_cut"] += fitted.rows != rows
        counts["responses_cut"] += fitted.responses_cut
        counts["boundaries_moved"] += _shared_prefix([*rows, prompt]) < len(prompt)
    return Group(
        prompt_id=record.id,
        rows=tuple(map(tuple, fitted.rows)),
        chars=tuple(len(r.text) for r in record.responses),
        rankings=tuple(r.ranking for r in record.rankings),
        comparisons=comparisons,
        shared=fitted.shared,
        annotators=tuple(r.annotator for r in record.rankings),
    )


@dataclass(frozen=True)
class Fitted:
    """Rows of at most `max_length` tokens, the first `shared` of which are their common prompt."""

    rows: list[list[int]]
    shared: int
    responses_cut: int
    """Rows that lost part of the response itself."""


def fit(rows: Sequence[list[int]], *, prompt: Sequence[int], max_length: int, bos: int | None) -> Fitted:
    """Cut rows to `max_length` tokens: first the prompt's start, then that of responses still too long.

    All rows lose the same part of the prompt, for responses are compared on one prompt; of a long one a quarter of
    `max_length` stays, so that one overlong response does not cost the others their prompt. A BOS at the start stays,
    and so do the scored EOS and each response's end.
    """
    shared = min(_shared_prefix([*rows, prompt]), min(map(len, rows)) - 1)
    if max(map(len, rows)) <= max_length:
        return Fitted(list(rows), shared=shared, responses_cut=0)
    head = [bos] if bos is not None and shared and rows[0][0] == bos else []
    longest = max(map(len, rows)) - shared
    kept = min(shared - len(head), max(max_length - len(head) - longest, max_length // 4))
    room = max_length - len(head) - kept
    fitted = [head + row[shared - kept : shared] + row[shared:][-room:] for row in rows]
    return Fitted(fitted, shared=len(head) + kept, responses_cut=sum(len(row) - shared > room for row in rows))


def _shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    first, last = min(map(list, rows)), max(map(list, rows))  # by dictionary order: what these two share, all share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def ranking_tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    """All rankings with at least two responses, as one list of their ranked responses. Shapes: each (M,).

    `listed`: index into the groups' rows laid end to end; `tier`: 0 is best; `ranking`: which ranking it belongs to.
    """
    found = []
    start = number = 0
    for group in groups:
        for ranking in group.rankings:
            if sum(map(len, ranking.tiers)) > 1:
                found += [(start + n - 1, tier, number) for tier, tied in enumerate(ranking.tiers) for n in tied]
                number += 1
        start += len(group.rows)
    listed, tier, ranking_number = zip(*found, strict=True) if found else ((), (), ())
    columns = {"listed": listed, "tier": tier, "ranking": ranking_number}
    return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


def comparison_tensors(groups: Sequence[Group], *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All comparisons of some groups, as indices into their rows laid end to end. Shapes: each (P,)."""
    starts = [sum(len(g.rows) for g in groups[:i]) for i in range(len(groups))]
    found = [(start, c) for start, g in zip(starts, groups, strict=True) for c in g.comparisons]
    return {
        "chosen": torch.tensor([start + c.chosen - 1 for start, c in found], dtype=torch.long),
        "rejected": torch.tensor([start + c.rejected - 1 for start, c in found], dtype=torch.long),
        "preference": torch.tensor([c.preference for _, c in found], dtype=dtype),
        "tie": torch.tensor([c.tie for _, c in found], dtype=dtype),
        "margin": torch.tensor([c.margin for _, c in found], dtype=dtype),
        "weight": torch.tensor([c.weight for _, c in found], dtype=dtype),
    }
