"""Prompt groups: a prompt's responses as token ids, and every comparison between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.comparisons import Comparison, Expansion, expand, votes
from data.notation import Ranking
from data.records import PromptRecord
from data.verdicts import acceptable_shares
from train.chat import ADDED_PAD, control_tokens, encode_response, opening_length

Span = tuple[int, int]
"""Tokens of a row, from the first number up to the second, which is not among them."""


@dataclass(frozen=True)
class Group:
    """One prompt. `rows[n - 1]`: the ids of prompt and response An, EOS last.

    `shared`: how many leading tokens all rows have in common as their prompt. `chars`: each response's length in
    characters. `rankings` with `annotators`, who made each. `comparisons`: what is learned from or measured on.
    `spans`: of each row, the tokens that a language model learns to write; none given, all after the prompt.
    `mismatched`: for KTO, this prompt with another prompt's response.
    """

    prompt_id: str
    rows: tuple[tuple[int, ...], ...]
    chars: tuple[int, ...]
    rankings: tuple[Ranking, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    shared: int = 0
    annotators: tuple[str, ...] = ()
    spans: tuple[tuple[Span, ...], ...] = ()
    mismatched: Group | None = None

    @property
    def learned(self) -> tuple[tuple[Span, ...], ...]:
        """For each row, which of its tokens a language model learns to write; nothing comes before a row's first."""
        return self.spans or tuple(((max(self.shared, 1), len(row)),) for row in self.rows)

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
    without_bar: int = 0
    """Ranked prompts without an acceptable bar, where that is what is learned from. Left out."""
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
    judged: int = 0
    """Responses that somebody put before or behind an acceptable bar."""
    acceptable: float = 0
    """Of those, the ones before it; a response counts in the share of the annotators who say so."""
    boundaries_moved: int = 0
    """Used prompts whose tokens change when a response follows: the part they share is shorter than the prompt."""
    control_text: int = 0
    """Used prompts that spell a control token, such as <|im_end|>, themselves or in a response: it is read as one."""
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
    by_bar: bool = False,
    keep_start: bool = False,
) -> tuple[list[Group], GroupReport]:
    """Groups of the records that have comparisons, and the account of all of them.

    `soft`: the annotators' vote shares as labels instead of each ranking's own pairs. `ties=False` drops (and counts)
    pairs that are tied. `by_bar`: groups of the records with an acceptable bar instead. `keep_start`: see `fit`.
    """
    counts: dict[str, Any] = dict.fromkeys((f.name for f in fields(GroupReport)), 0)
    control = control_tokens(tokenizer).keys() - {ADDED_PAD}
    groups = []
    for record in records:
        counts["prompts"] += 1
        counts["set_aside"] += len(record.set_aside)
        expansions = _expansions(record, soft=soft, ties=ties)
        counts["ties_dropped"] += sum(e.ties_left_out for e in expansions)
        comparisons = tuple(c for e in expansions for c in e.comparisons)
        barred = any(r.ranking.bar is not None for r in record.rankings)
        if not (barred if by_bar else comparisons):
            counts[_reason(record, by_bar=by_bar)] += 1
            continue
        group = encode_group(
            record, tokenizer, max_length=max_length, comparisons=comparisons, counts=counts, keep_start=keep_start
        )
        groups.append(group)
        _count(group, counts)
        texts = [*(m.content for m in record.prompt), *(r.text for r in record.responses)]
        counts["control_text"] += any(token in text for token in control for text in texts)
        counts["unranked_pairs"] += sum(e.unranked for e in expansions)
    return groups, GroupReport(**counts)


def _reason(record: PromptRecord, *, by_bar: bool) -> str:
    """Why a record is left out, as the report counts it."""
    if not record.rankings:
        return "without_ranking"
    return "without_bar" if by_bar else "without_comparison"


def _expansions(record: PromptRecord, *, soft: bool, ties: bool) -> list[Expansion]:
    """One expansion a ranking, or with `soft` one of all votes."""
    rankings = [r.ranking for r in record.rankings]
    if not soft:
        return [expand(ranking, len(record.responses), ties=ties) for ranking in rankings]
    found = votes(rankings, len(record.responses))
    kept = [c for c in found.comparisons if ties or c.tie < 1]
    even = tuple(replace(c, weight=1 / len(kept)) for c in kept)
    return [Expansion(even, ties_left_out=len(found.comparisons) - len(kept), unranked=found.unranked)]


def _count(group: Group, counts: dict[str, Any]) -> None:
    """Add a used prompt to the account."""
    tied = [c.tie == 1 for c in group.comparisons]
    lengths = [len(row) for row in group.rows]
    counts["used"] += 1
    counts["rankings"] += len(group.rankings)
    counts["responses"] += len(group.rows)
    counts["comparisons"] += len(group.comparisons)
    counts["ties"] += sum(tied)
    counts["only_ties"] += bool(tied) and all(tied)
    shares = acceptable_shares(group.rankings)
    counts["judged"] += len(shares)
    counts["acceptable"] += sum(shares.values())
    counts["tokens"] += group.tokens
    counts["tokens_expanded"] += sum(lengths[c.chosen - 1] + lengths[c.rejected - 1] for c in group.comparisons)
    counts["longest_row"] = max(counts["longest_row"], *lengths)


def encode_group(
    record: PromptRecord,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    comparisons: tuple[Comparison, ...] = (),
    counts: dict[str, Any] | None = None,
    keep_start: bool = False,
) -> Group:
    """One record as a group, with or without rankings. `counts` takes what was cut. `keep_start`: see `fit`."""
    rows = [encode_response(tokenizer, record.prompt, r.text) for r in record.responses]
    shared, moved = opening_length(tokenizer, record.prompt, rows)
    fitted = fit(rows, shared=shared, max_length=max_length, bos=tokenizer.bos_token_id, keep_start=keep_start)
    if counts is not None:
        counts["prompts_cut"] += fitted.rows != rows
        counts["responses_cut"] += fitted.responses_cut
        counts["boundaries_moved"] += moved
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


def fit(
    rows: Sequence[list[int]], *, shared: int, max_length: int, bos: int | None, keep_start: bool = False
) -> Fitted:
    """Cut rows to `max_length` tokens: first the start of the prompt, the leading `shared` tokens of all, then that of
    responses still too long.

    All rows lose the same part of the prompt, for responses are compared on one prompt; of a long one a quarter of
    `max_length` stays, so that one overlong response does not cost the others their prompt. A BOS at the start stays,
    and so do the scored EOS and each response's end; with `keep_start` each response's start stays instead, since what
    is learned to be written goes from left to right.
    """
    shared = min(shared, min(map(len, rows)) - 1)
    if max(map(len, rows)) <= max_length:
        return Fitted(list(rows), shared=shared, responses_cut=0)
    head = [bos] if bos is not None and shared and rows[0][0] == bos else []
    longest = max(map(len, rows)) - shared
    kept = min(shared - len(head), max(max_length - len(head) - longest, max_length // 4))
    room = max_length - len(head) - kept
    part = slice(None, room) if keep_start else slice(-room, None)
    fitted = [head + row[shared - kept : shared] + row[shared:][part] for row in rows]
    return Fitted(fitted, shared=len(head) + kept, responses_cut=sum(len(row) - shared > room for row in rows))


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


def bar_tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    """The acceptable bars, one number a response. Shapes: each (R,).

    `judged`: 1 where somebody's bar says something of the response, else 0; `acceptable`: the share who put it before
    the bar, 0 where nobody judged.
    """
    found = [(acceptable_shares(group.rankings), len(group.rows)) for group in groups]
    shares = [own.get(n) for own, rows in found for n in range(1, rows + 1)]
    return {
        "judged": torch.tensor([float(share is not None) for share in shares]),
        "acceptable": torch.tensor([share or 0.0 for share in shares]),
    }


def length_tensor(groups: Sequence[Group]) -> Tensor:
    """Tokens of each response that a language model learns to write. Shape (R,)."""
    return torch.tensor([float(sum(end - start for start, end in spans)) for g in groups for spans in g.learned])


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
