"""Prompt groups: a prompt's responses as token ids, and every comparison between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.comparisons import Comparison, expand
from data.notation import Ranking
from data.records import PromptRecord
from train.chat import encode_prompt, encode_response


@dataclass(frozen=True)
class Group:
    """One prompt. `rows[n - 1]`: the ids of prompt and response An, EOS last.

    `chars`: each response's length in characters. `comparisons`: of all rankings, each ranking's weights summing to 1.
    """

    prompt_id: str
    rows: tuple[tuple[int, ...], ...]
    chars: tuple[int, ...]
    rankings: tuple[Ranking, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.rows))


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
    """Prompts whose rankings place fewer than two responses: left out."""
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
    unranked_pairs: int = 0
    """Pairs of responses that an annotator left unranked: no comparison."""
    set_aside: int = 0
    """Times an annotator skipped or flagged a prompt."""
    prompts_cut: int = 0
    """Used prompts whose start was cut off to fit max_length."""
    responses_cut: int = 0
    """Responses longer than max_length by themselves: their start was cut off too."""
    tokens: int = 0
    """Tokens of the used prompts' rows."""
    longest_row: int = 0
    """Tokens of the longest row."""


def encode_records(
    records: Iterable[PromptRecord], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[Group], GroupReport]:
    """Groups of the records that have comparisons, and the account of all of them."""
    counts = dict.fromkeys((f.name for f in fields(GroupReport)), 0)
    groups = []
    for record in records:
        counts["prompts"] += 1
        counts["set_aside"] += len(record.set_aside)
        expansions = [expand(r.ranking, len(record.responses)) for r in record.rankings]
        comparisons = tuple(c for e in expansions for c in e.comparisons)
        if not comparisons:
            counts["without_comparison" if record.rankings else "without_ranking"] += 1
            continue
        group = encode_group(record, tokenizer, max_length=max_length, comparisons=comparisons, counts=counts)
        groups.append(group)
        counts["used"] += 1
        counts["rankings"] += len(record.rankings)
        counts["responses"] += len(group.rows)
        counts["comparisons"] += len(comparisons)
        counts["ties"] += sum(c.margin == 0 for c in comparisons)
        counts["only_ties"] += all(c.margin == 0 for c in comparisons)
        counts["unranked_pairs"] += sum(e.unranked for e in expansions)
        counts["tokens"] += group.tokens
        counts["longest_row"] = max(counts["longest_row"], *map(len, group.rows))
    return groups, GroupReport(**counts)


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
    fitted, responses_cut = rows, 0
    if max(map(len, rows)) > max_length:
        prompt = encode_prompt(tokenizer, record.prompt)
        fitted, responses_cut = cut(rows, prompt=prompt, max_length=max_length, bos=tokenizer.bos_token_id)
    if counts is not None:
        counts["prompts_cut"] += fitted != rows
        counts["responses_cut"] += responses_cut
    return Group(
        prompt_id=record.id,
        rows=tuple(map(tuple, fitted)),
        chars=tuple(len(r.text) for r in record.responses),
        rankings=tuple(r.ranking for r in record.rankings),
        comparisons=comparisons,
    )


def cut(
    rows: Sequence[list[int]], *, prompt: Sequence[int], max_length: int, bos: int | None
) -> tuple[list[list[int]], int]:
    """Cut rows to `max_length` tokens from the left, so that the scored EOS and the response's end stay.

    All rows lose the same part of the prompt, as far as that goes: responses are compared on one prompt. A BOS at the
    start stays there. Returns the rows and how many lost part of the response itself.
    """
    head = [bos] if bos is not None and rows[0][0] == bos else []
    spare = _shared_prefix([*rows, prompt])
    start = max(min(max(map(len, rows)) - max_length + len(head), spare), len(head))
    kept = [row[start:] for row in rows]
    room = max_length - len(head)
    return [head + row[-room:] for row in kept], sum(len(row) > room for row in kept)


def _shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    first, last = min(map(list, rows)), max(map(list, rows))  # by dictionary order: what these two share, all share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def comparison_tensors(groups: Sequence[Group], *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All comparisons of some groups, as indices into their rows laid end to end. Shapes: each (P,)."""
    starts = [sum(len(g.rows) for g in groups[:i]) for i in range(len(groups))]
    found = [(start, c) for start, g in zip(starts, groups, strict=True) for c in g.comparisons]
    return {
        "chosen": torch.tensor([start + c.chosen - 1 for start, c in found], dtype=torch.long),
        "rejected": torch.tensor([start + c.rejected - 1 for start, c in found], dtype=torch.long),
        "preference": torch.tensor([c.preference for _, c in found], dtype=dtype),
        "weight": torch.tensor([c.weight for _, c in found], dtype=dtype),
    }
