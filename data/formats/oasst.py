"""Open-Assistant message trees, one tree a line.

Each prompter turn with two or more ranked replies becomes one prompt: the conversation before it, the turn itself, and
the ranked replies in file order. `rank` 0 is best; equal ranks are a tie. The order is one consensus of many people, so
it comes under the annotator 'oasst'.

Source: Köpf et al. 2023, "OpenAssistant Conversations", section 3; the schema is that of the project's tree exports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.errors import BadInput
from data.formats import LeftOut, Row
from data.formats.lines import Source, parse_json, read_lines
from data.records import read_record

ANNOTATOR = "oasst"
_ROLES = {"prompter": "user", "assistant": "assistant"}


def read_oasst(source: Source, *, min_responses: int) -> Iterator[Row | LeftOut]:
    """The prompts of a file of trees, and what was left out of it. Raises BadInput."""
    for line in read_lines(source):
        where = source.at(line.number)
        tree = parse_json(line.text, where=where)
        if not isinstance(tree, dict) or not isinstance(tree.get("prompt"), dict):
            raise BadInput(
                f"{where}: no tree; a line of this format has 'message_tree_id' and 'prompt' with its 'replies'. "
                "Export trees, not messages."
            )
        for turn, conversation in _prompter_turns(tree["prompt"], where=where):
            yield from _turn_rows(turn, conversation, line=line.number, where=where, least=max(2, min_responses))


def _prompter_turns(root: Mapping[str, Any], *, where: str) -> Iterator[tuple[Mapping[str, Any], list[dict[str, str]]]]:
    """Every prompter message that has replies, depth first, with the conversation up to and with it."""
    waiting: list[tuple[Mapping[str, Any], list[dict[str, str]]]] = [(root, [])]
    while waiting:
        message, before = waiting.pop()
        conversation = [*before, _chat_message(message, where=where)]
        replies = _replies(message, where=where)
        if message["role"] == "prompter" and replies:
            yield message, conversation
        waiting += [(reply, conversation) for reply in reversed(replies)]


def _turn_rows(
    turn: Mapping[str, Any], conversation: list[dict[str, str]], *, line: int, where: str, least: int
) -> Iterator[Row | LeftOut]:
    replies = _replies(turn, where=where)
    ranked = [r for r in replies if r.get("rank") is not None and not r.get("deleted")]
    if len(ranked) < least:
        yield LeftOut(line, f"prompter turns with fewer than {least} ranked replies")
        return
    if len(ranked) < len(replies):
        yield LeftOut(line, "replies without a rank, or deleted, beside ranked ones", len(replies) - len(ranked))
    where = f"{where}: message {turn.get('message_id')}"
    row = {
        "id": turn.get("message_id"),
        "prompt": conversation,
        "responses": [{"text": r.get("text"), "model": r.get("model_name"), "id": r.get("message_id")} for r in ranked],
        "rankings": [{"annotator": ANNOTATOR, "ranking": _ranking([r["rank"] for r in ranked], where=where)}],
        "metadata": {"lang": turn["lang"]} if turn.get("lang") else {},
    }
    yield Row(line, read_record(row, where=where, min_responses=least))


def _ranking(ranks: Sequence[object], *, where: str) -> str:
    """`[2, 0, 1]` becomes `A2>A3>A1`."""
    tiers: dict[int, list[str]] = {}
    for number, rank in enumerate(ranks, start=1):
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise BadInput(f"{where}: a reply's 'rank' is {rank!r:.40}; it must be a whole number, 0 for the best.")
        tiers.setdefault(rank, []).append(f"A{number}")
    return ">".join("=".join(tiers[rank]) for rank in sorted(tiers))


def _chat_message(message: Mapping[str, Any], *, where: str) -> dict[str, str]:
    role = message.get("role")
    if role not in _ROLES or not isinstance(message.get("text"), str):
        raise BadInput(
            f"{where}: message {message.get('message_id')!s:.60} has role {role!r:.40}; a message has a text and the "
            "role 'prompter' or 'assistant'. Correct or delete it."
        )
    return {"role": _ROLES[role], "content": message["text"]}


def _replies(message: Mapping[str, Any], *, where: str) -> list[Mapping[str, Any]]:
    replies = message.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise BadInput(f"{where}: 'replies' must be a list of messages. Correct it or delete the line.")
    return replies
