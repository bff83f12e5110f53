"""Conversations for `--stage chat`: rows of tokens of which the assistant's turns are learned, and nothing else.

A line of JSONL is one conversation, in any of these forms:
{"messages": [{"role", "content"}…]}, of which an assistant's turn with "weight": 0 is read and not learned;
{"prompt": text or messages, "response" or "completion": text or messages}, of which the response is learned;
{"conversations": [{"from": "human" or "gpt", "value"}…]} (ShareGPT);
{"instruction", "input", "output"} (Alpaca).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from data.errors import BadInput
from data.formats.lines import parse_json, read_lines, source_of
from data.records import ROLES, Message, PromptRecord, check_text
from data.splits import EVAL, check_eval_fraction, split_of
from data.verdicts import acceptable_shares, best_responses
from train.chat import ADDED_PAD, control_tokens, encode_response, opening_length
from train.groups import Group, Span

_ROLES = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant", "developer": "system"}
_EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


@dataclass(frozen=True)
class Conversation:
    """Messages, and which of them are learned: places of assistant turns, from 0, none of which is the first message.

    `where`: file and line, or the prompt. `split`: `train` or `eval` where the data set has decided.
    """

    messages: tuple[Message, ...]
    learned: tuple[int, ...]
    where: str
    split: str = ""


@dataclass(frozen=True)
class ConversationReport:
    """What became of the conversations. Nothing is left out or cut without being counted here."""

    conversations: int = 0
    """Conversations read."""
    used: int = 0
    """Conversations with a turn to learn: what is learned from or measured on."""
    without_response: int = 0
    """Conversations in which the assistant answers nothing, or nothing that may be learned: left out."""
    turns: int = 0
    """Assistant turns learned."""
    turns_not_learned: int = 0
    """Assistant turns of the used conversations that are read only: opening a conversation, part of a prompt, of weight
    0, or before the last one under --turns last."""
    turns_empty: int = 0
    """Learned turns without text: they teach to end at once."""
    messages_dropped: int = 0
    """Messages after the last learned turn: nothing is learned from them."""
    turns_apart: int = 0
    """Learned turns in rows of their own, as the model meets them when it writes: the chat template writes them
    otherwise (or without EOS) once the conversation goes on."""
    turns_beyond: int = 0
    """Learned turns in rows of their own because the conversation up to them is longer than max_length."""
    prompts_cut: int = 0
    """Rows whose oldest tokens were cut off to fit max_length."""
    responses_cut: int = 0
    """Learned turns that lost their end, and with it the EOS: too long for max_length by themselves."""
    boundaries_moved: int = 0
    """Learned turns before which the template or the tokenizer writes something else than before an open turn."""
    control_text: int = 0
    """Used conversations in which a message spells a control token, such as <|im_end|>, which is read as that token."""
    rows: int = 0
    """Rows of tokens."""
    tokens: int = 0
    """Tokens of all rows."""
    learned_tokens: int = 0
    """Tokens that are learned: the assistant's, each turn's EOS included."""
    longest_row: int = 0
    """Tokens of the longest row."""


@dataclass(frozen=True)
class BestReport:
    """What became of the prompts of a ranking project, of which the best response is to be learned."""

    prompts: int = 0
    """Prompts read."""
    used: int = 0
    """Prompts whose best response is learned."""
    without_ranking: int = 0
    """Prompts nobody ranked: left out."""
    without_comparison: int = 0
    """Ranked prompts in which no response was compared with another: left out."""
    unacceptable: int = 0
    """Prompts whose best response most of those who set an acceptable bar put behind it: left out."""
    tied: int = 0
    """Used prompts with several equally good best responses, of which the first is learned."""


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a JSONL file. Raises BadInput, NotFound."""
    source = source_of(path)
    if path.is_dir():
        raise BadInput(
            f"{source.name}: this is a folder; --stage chat reads a file of conversations. Name the file, or learn the "
            "best responses of a ranking project with --from_rankings top1."
        )
    found = [_conversation(line.text, where=source.at(line.number)) for line in read_lines(source)]
    if not found:
        raise BadInput(f"{source.name}: the file is empty; a line is one conversation. Write rows such as {_EXAMPLE}.")
    return found


def _conversation(line: str, *, where: str) -> Conversation:
    row = parse_json(line, where=where)
    if isinstance(row, list):
        raise BadInput(f"{where}: a JSON list; a row is one JSON object on one line. Convert it (jq -c '.[]' FILE).")
    if not isinstance(row, dict):
        raise BadInput(f"{where}: no JSON object; a row is one conversation. Write rows such as {_EXAMPLE}.")
    key = next((k for k in ("messages", "conversations") if k in row), None)
    if key:
        turns = _turns(row[key], f"'{key}'", where=where)
        messages = _messages(turns, f"'{key}'", where=where)
        read_only = {i for i, turn in enumerate(turns) if turn.get("weight") == 0}
    else:
        prompt, response = _prompt_and_response(row, where=where)
        messages = prompt + response
        read_only = set(range(len(prompt)))
    before = _system(row, where=where)
    learned = (i for i, m in enumerate(messages) if m.role == "assistant" and i not in read_only)
    return Conversation(before + messages, tuple(i + len(before) for i in learned if i + len(before)), where)


def _prompt_and_response(row: Mapping[str, Any], *, where: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    if "prompt" in row and ("response" in row or "completion" in row):
        key = "response" if "response" in row else "completion"
        prompt = _messages(_turns(row["prompt"], "'prompt'", where=where), "'prompt'", where=where)
        response = _turns(row[key], f"'{key}'", where=where, role="assistant")
        return prompt, _messages(response, f"'{key}'", where=where)
    if "instruction" in row and "output" in row:
        if row.get("history"):
            raise BadInput(f"{where}: 'history' is not read. Write the row as {_EXAMPLE}.")
        asked = [_text(row.get(k) or "", f"'{k}'", where=where) for k in ("instruction", "input")]
        turns = [("user", "\n\n".join(filter(None, asked))), ("assistant", row["output"])]
        messages = _messages([{"role": r, "content": c} for r, c in turns], "the row", where=where)
        return messages[:1], messages[1:]
    found = ", ".join(sorted(map(str, row))[:8])[:200] or "none"
    remedy = f"Write rows such as {_EXAMPLE}"
    if {"responses", "chosen"} & row.keys():
        remedy = "To learn the best responses of rankings, use --from_rankings top1"
    elif "text" in row:
        remedy = "To learn plain text, use --stage text"
    raise BadInput(f"{where}: the keys are {found}; a row holds 'messages', or 'prompt' and 'response'. {remedy}.")


def _system(row: Mapping[str, Any], *, where: str) -> tuple[Message, ...]:
    """ShareGPT and Alpaca rows may name the system's turn beside the others."""
    text = _text(row.get("system") or "", "'system'", where=where)
    return (Message("system", text),) if text else ()


def _turns(value: object, what: str, *, where: str, role: str = "user") -> list[dict[str, Any]]:
    """A list of messages, each an object; a text is one message."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise BadInput(f"{where}: {what} is no list of messages. Write for example {_EXAMPLE}.")
    return value


def _messages(turns: Sequence[Mapping[str, Any]], what: str, *, where: str) -> tuple[Message, ...]:
    return tuple(_message(t, where=f"{where}: {what}, message {n}") for n, t in enumerate(turns, start=1))


def _message(turn: Mapping[str, Any], *, where: str) -> Message:
    """One turn, as OpenAI (role, content) or ShareGPT (from, value) write it."""
    named = turn.get("role", turn.get("from"))
    if not isinstance(named, str) or named not in _ROLES:
        raise BadInput(f"{where}: role {json.dumps(named)[:40]}; a role is one of {', '.join(ROLES)}. Correct it.")
    role = _ROLES[named]
    content = _text(turn.get("content", turn.get("value")), "the content", where=where)
    if role == "user" and not content.strip():
        raise BadInput(f"{where}: the user's turn is empty. Write what was asked or delete the line.")
    return Message(role, content)


def _text(value: object, what: str, *, where: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where}: {what} is {json.dumps(value)[:40]}; it must be text. Correct it or delete the line.")
    return check_text(value, what, where=where)


def conversations_of_rankings(records: Iterable[PromptRecord]) -> tuple[list[Conversation], BestReport]:
    """Each ranked prompt with its best response, and the account of all prompts.

    Of equals, the first that at least half of those accept who set a bar.
    """
    counts = dict.fromkeys((f.name for f in fields(BestReport)), 0)
    conversations = []
    for record in records:
        counts["prompts"] += 1
        rankings = [entry.ranking for entry in record.rankings]
        best, shares = best_responses(rankings), acceptable_shares(rankings)
        acceptable = [n for n in best if shares.get(n, 1.0) >= 0.5]
        if not acceptable:
            counts["unacceptable" if best else "without_comparison" if record.rankings else "without_ranking"] += 1
            continue
        counts["used"] += 1
        counts["tied"] += len(best) > 1
        messages = (*record.prompt, Message("assistant", record.responses[acceptable[0] - 1].text))
        conversations.append(Conversation(messages, (len(record.prompt),), f"prompt {record.id}", record.split))
    return conversations, BestReport(**counts)


def split_conversations(
    conversations: Sequence[Conversation], eval_fraction: float
) -> tuple[list[Conversation], list[Conversation]]:
    """What to learn from and what to hold out, by hash of what opens a conversation: no opening is on both sides.

    A conversation that has its split keeps it. Where the hash would leave nothing to learn from, nothing is held out.
    Raises BadInput.
    """
    check_eval_fraction(eval_fraction)
    sides = [
        c.split or split_of(PromptRecord(_opening(c.messages), responses=()), eval_fraction) for c in conversations
    ]
    train = [c for c, side in zip(conversations, sides, strict=True) if side != EVAL]
    if not train and not any(c.split for c in conversations):
        return list(conversations), []
    return train, [c for c, side in zip(conversations, sides, strict=True) if side == EVAL]


def _opening(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """What stands before the first answer to the user: a greeting by the assistant is part of the opening."""
    asked = next((i for i, m in enumerate(messages) if m.role == "user"), 0)
    return messages[: next((i for i, m in enumerate(messages) if m.role == "assistant" and i > asked), None)]


@dataclass(frozen=True)
class _Turn:
    """A learned turn as the model meets it: `ids` end with the turn's EOS; the model writes those from `start` on."""

    ids: list[int]
    start: int
    boundary_moved: bool


def encode_conversations(
    conversations: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    turns: Literal["all", "last"],
) -> tuple[list[Group], ConversationReport]:
    """Rows of at most `max_length` tokens whose spans are the assistant's turns, and the account of them.

    A conversation is one row if each learned turn, encoded as the last one, is the start of the whole. Other turns, and
    those that end beyond `max_length`, have a row each, from which the oldest tokens are cut. Raises BadInput.
    """
    assert max_length >= 4, max_length  # a quarter of it is a token at least
    counts = dict.fromkeys((f.name for f in fields(ConversationReport)), 0)
    control = control_tokens(tokenizer).keys() - {ADDED_PAD}
    groups: list[Group] = []
    for conversation in conversations:
        counts["conversations"] += 1
        learned = conversation.learned if turns == "all" else conversation.learned[-1:]
        if not learned:
            counts["without_response"] += 1
            continue
        _count_messages(conversation, learned, control=control, counts=counts)
        encoded = [_encode_turn(conversation, place, tokenizer) for place in learned]
        counts["boundaries_moved"] += sum(turn.boundary_moved for turn in encoded)
        groups += _rows(conversation, encoded, max_length=max_length, bos=tokenizer.bos_token_id, counts=counts)
    for group in groups:
        counts["rows"] += 1
        counts["tokens"] += len(group.rows[0])
        counts["learned_tokens"] += sum(end - start for start, end in group.spans[0])
        counts["longest_row"] = max(counts["longest_row"], len(group.rows[0]))
    return groups, ConversationReport(**counts)


def _count_messages(
    conversation: Conversation, learned: Sequence[int], *, control: Iterable[str], counts: dict[str, int]
) -> None:
    kept = conversation.messages[: learned[-1] + 1]
    spelled = any(token in m.content for token in control for m in kept)
    counts["used"] += 1
    counts["turns"] += len(learned)
    counts["turns_not_learned"] += sum(m.role == "assistant" for m in conversation.messages) - len(learned)
    counts["turns_empty"] += sum(not kept[place].content.strip() for place in learned)
    counts["messages_dropped"] += len(conversation.messages) - len(kept)
    counts["control_text"] += spelled


def _encode_turn(conversation: Conversation, place: int, tokenizer: PreTrainedTokenizerBase) -> _Turn:
    """The conversation up to one assistant turn. Raises BadInput where the chat template refuses it."""
    before, content = conversation.messages[:place], conversation.messages[place].content
    try:
        ids = encode_response(tokenizer, before, content)
        start, moved = opening_length(tokenizer, before, [ids])
    except BadInput as error:
        raise BadInput(f"{conversation.where}: {error}") from None
    return _Turn(ids, start=max(min(start, len(ids) - 1), 1), boundary_moved=moved)


def _rows(
    conversation: Conversation, turns: Sequence[_Turn], *, max_length: int, bos: int | None, counts: dict[str, int]
) -> Iterator[Group]:
    """One row for the turns that are each the start of the next and fit, one for every other turn."""
    together = [turn for turn in turns if len(turn.ids) <= max_length]
    apart = [turn for turn in turns if len(turn.ids) > max_length]
    counts["turns_beyond"] += len(apart) if len(turns) > 1 else 0
    if not all(_goes_on(a, b) for a, b in pairwise(together)):
        counts["turns_apart"] += len(together)
        together, apart = [], list(turns)
    if together:
        yield _group(conversation, together[-1].ids, [(turn.start, len(turn.ids)) for turn in together])
    for turn in apart:
        ids, start = _cut(turn, max_length=max_length, bos=bos)
        counts["prompts_cut"] += start < turn.start
        counts["responses_cut"] += len(ids) - start < len(turn.ids) - turn.start
        yield _group(conversation, ids, [(start, len(ids))])


def _goes_on(turn: _Turn, later: _Turn) -> bool:
    """The later turn's prompt begins with the whole earlier turn, EOS included."""
    return len(turn.ids) <= later.start and later.ids[: len(turn.ids)] == turn.ids


def _group(conversation: Conversation, ids: Sequence[int], spans: Sequence[Span]) -> Group:
    return Group(conversation.where, (tuple(ids),), (), spans=(tuple(spans),))


def _cut(turn: _Turn, *, max_length: int, bos: int | None) -> tuple[list[int], int]:
    """At most `max_length` ids, and where the turn begins in them: first the oldest of the prompt go.

    A quarter of `max_length` of the prompt stays, lest an answer is learned to nothing; a turn too long for the rest
    loses its end, for a language model learns from left to right. A BOS at the start stays.
    """
    ids, start = turn.ids, turn.start
    if len(ids) <= max_length:
        return ids, start
    head = [bos] if bos is not None and ids[0] == bos else []
    kept = min(start - len(head), max(max_length - len(head) - (len(ids) - start), max_length // 4))
    room = max_length - len(head) - kept
    return head + ids[start - kept : start] + ids[start : start + room], len(head) + kept
