"""The native row: what a prompt, its responses and their rankings look like in a file.

One JSON object a line (`rankings.jsonl`, import, score, generate). `read_record` is the only door: whatever passes it
can be stored in every database, exported and trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from data.errors import BadInput
from data.notation import Ranking, parse_ranking

MAX_TEXT_CHARS = 1_000_000
MAX_RESPONSES = 50
MAX_NAME_CHARS = 200
ROLES = ("system", "user", "assistant")
ROW_KEYS = {"id", "prompt", "responses", "rankings", "ranking", "annotator", "metadata", "set_aside", "split"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Response:
    """One candidate answer. `model` is who wrote it; annotators never see it."""

    text: str
    model: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class AnnotatorRanking:
    """One annotator's ranking of one prompt's responses, in file-order labels.

    `order`: the response numbers in the order this annotator saw them (empty = file order or unknown).
    `seconds`: time from display to submit. `revision`: 1 for the first judgement, one more for each edit or undo.
    """

    annotator: str
    ranking: Ranking
    order: tuple[int, ...] = ()
    seconds: float | None = None
    comment: str = ""
    revision: int = 1
    created_at: datetime | None = None


@dataclass(frozen=True)
class SetAside:
    """An annotator skipped or flagged the prompt instead of ranking it."""

    annotator: str
    status: str
    reason: str = ""
    seconds: float | None = None
    comment: str = ""
    revision: int = 1
    created_at: datetime | None = None


@dataclass(frozen=True)
class PromptRecord:
    """A prompt (chat messages ending with the user's turn), its responses A1…AK and its rankings."""

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    rankings: tuple[AnnotatorRanking, ...] = ()
    id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    set_aside: tuple[SetAside, ...] = ()
    split: str = ""

    @property
    def prompt_hash(self) -> str:
        """sha256 of the prompt alone; equal prompts share it, whatever their responses."""
        return hashlib.sha256(_canonical([[m.role, m.content] for m in self.prompt])).hexdigest()

    @property
    def content_hash(self) -> str:
        """sha256 of prompt and responses; tells whether two rows with one id are the same row."""
        texts = [[r.text, r.model] for r in self.responses]
        return hashlib.sha256(_canonical([self.prompt_hash, texts])).hexdigest()


def prompt_messages(value: object, *, where: str) -> tuple[Message, ...]:
    """A prompt as messages: a text becomes one user turn. Raises BadInput."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: 'prompt' must be a text or a list of messages. Give one user message at least.")
    messages = tuple(_message(m, where=f"{where}: message {i}") for i, m in enumerate(value, start=1))
    if messages[-1].role != "user":
        raise BadInput(
            f"{where}: the prompt ends with a turn of '{messages[-1].role}'; it must end with the user's turn. "
            "Move the last turn into the responses or delete it."
        )
    return messages


def read_record(row: object, *, where: str, min_responses: int = 2) -> PromptRecord:
    """One native row, checked. `where` (file and line) opens every message. Raises BadInput."""
    if not isinstance(row, dict):
        raise BadInput(f"{where}: found {_kind(row)}; a row is a JSON object with 'prompt' and 'responses'.")
    for key in ("prompt", "responses"):
        if key not in row:
            found = ", ".join(sorted(map(str, row))[:8]) or "no key at all"
            raise BadInput(f"{where}: no '{key}' (found: {found}); a row needs 'prompt' and 'responses'. Add it.")
    responses = _responses(row["responses"], where=where, least=min_responses)
    rankings = _rankings(row, len(responses), where=where)
    set_aside = tuple(_set_aside(s, where=where) for s in _list(row.get("set_aside"), "set_aside", where=where))
    _check_one_each([r.annotator for r in rankings] + [s.annotator for s in set_aside], where=where)
    record = PromptRecord(
        prompt=prompt_messages(row["prompt"], where=where),
        responses=responses,
        rankings=rankings,
        id=_name(row.get("id"), "id", where=where),
        metadata=_metadata(row, where=where),
        set_aside=set_aside,
        split=_text(row.get("split") or "", "split", where=where),
    )
    return record if record.id else _with_content_id(record)


def write_record(record: PromptRecord) -> dict[str, Any]:
    """The native row of a record; `read_record(write_record(r))` gives `r` back."""
    row: dict[str, Any] = {
        "id": record.id,
        "prompt": [{"role": m.role, "content": m.content} for m in record.prompt],
        "responses": [_drop_none({"text": r.text, "model": r.model, "id": r.id}) for r in record.responses],
        "rankings": [_write_ranking(r) for r in record.rankings],
    }
    if record.set_aside:
        row["set_aside"] = [_write_set_aside(s) for s in record.set_aside]
    if record.metadata:
        row["metadata"] = dict(record.metadata)
    if record.split:
        row["split"] = record.split
    return row


def check_text(value: str, what: str, *, where: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Refuse at the door what one of the databases or formats could not hold later."""
    if "\x00" in value:
        raise BadInput(f"{where}: {what} holds a NUL character (U+0000), which databases refuse. Delete it.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where}: {what} holds half of a surrogate pair at character {error.start + 1}, which is no text. "
            "Delete it or repair the export that cut it."
        ) from None
    if len(value) > limit:
        raise BadInput(f"{where}: {what} has {len(value):,} characters; at most {limit:,} are allowed. Shorten it.")
    return value


def check_name(name: str, what: str) -> str:
    """The name of a project or a person, without spaces around it. Raises BadInput."""
    name = check_text(name.strip(), "the name", where=what, limit=MAX_NAME_CHARS)
    if not name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise BadInput(f"{what}: the name is empty or holds a control character. Choose a plain name.")
    return name


def _message(value: object, *, where: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise BadInput(f'{where}: found {_kind(value)}; a message is {{"role": ..., "content": ...}}.')
    role = value["role"]
    if role not in ROLES:
        raise BadInput(f"{where}: role {json.dumps(role)[:40]}; a role is one of {', '.join(ROLES)}.")
    content = _text(value["content"], "the message", where=where)
    if role == "user" and not content.strip():
        raise BadInput(f"{where}: the user's turn is empty. Write what was asked.")
    return Message(role, content)


def _responses(value: object, *, where: str, least: int) -> tuple[Response, ...]:
    if not isinstance(value, list):
        raise BadInput(f"{where}: 'responses' is {_kind(value)}; it must be a list of texts.")
    if len(value) < least:
        noun = "response" if len(value) == 1 else "responses"
        raise BadInput(
            f"{where}: {len(value)} {noun}; a ranking needs at least {least}. Add a response or delete the line."
        )
    if len(value) > MAX_RESPONSES:
        raise BadInput(f"{where}: {len(value)} responses; at most {MAX_RESPONSES} can be ranked. Split the row.")
    return tuple(_response(r, where=f"{where}: response {i}") for i, r in enumerate(value, start=1))


def _response(value: object, *, where: str) -> Response:
    if isinstance(value, str):
        return Response(_text(value, "the text", where=where))
    if not isinstance(value, dict) or "text" not in value:
        raise BadInput(f'{where}: found {_kind(value)}; a response is a text or {{"text": ...}}.')
    return Response(
        text=_text(value["text"], "the text", where=where),
        model=_name(value.get("model"), "model", where=where) or None,
        id=_name(value.get("id"), "id", where=where) or None,
    )


def _rankings(row: Mapping[str, Any], responses: int, *, where: str) -> tuple[AnnotatorRanking, ...]:
    listed = _list(row.get("rankings"), "rankings", where=where)
    found = [_ranking(r, responses, where=f"{where}: ranking {i}") for i, r in enumerate(listed, start=1)]
    if row.get("ranking") not in (None, ""):
        found.append(_ranking({"annotator": row.get("annotator"), "ranking": row["ranking"]}, responses, where=where))
    return tuple(found)


def _check_one_each(names: list[str], *, where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(
                f"{where}: two decisions by '{name}'; a person decides on a prompt once. Keep the later one."
            )


def _ranking(value: object, responses: int, *, where: str) -> AnnotatorRanking:
    if not isinstance(value, dict) or not isinstance(value.get("ranking"), str):
        raise BadInput(f'{where}: found {_kind(value)}; a ranking is {{"annotator": ..., "ranking": "A2>A1"}}.')
    try:
        ranking = parse_ranking(value["ranking"], responses)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    order = tuple(_list(value.get("order"), "order", where=where))
    if order and sorted(order, key=str) != sorted(range(1, responses + 1), key=str):
        raise BadInput(f"{where}: 'order' must hold each of 1 to {responses} once. Correct it or leave it out.")
    return AnnotatorRanking(
        annotator=_name(value.get("annotator"), "annotator", where=where) or "imported",
        ranking=ranking,
        order=order,
        seconds=_seconds(value.get("seconds"), where=where),
        comment=_text(value.get("comment") or "", "the comment", where=where),
        revision=_revision(value.get("revision"), where=where),
        created_at=_time(value.get("created_at"), where=where),
    )


def _write_ranking(entry: AnnotatorRanking) -> dict[str, Any]:
    return _drop_none(
        {
            "annotator": entry.annotator,
            "ranking": str(entry.ranking),
            "order": list(entry.order) or None,
            "seconds": entry.seconds,
            "comment": entry.comment or None,
            "revision": entry.revision,
            "created_at": _iso(entry.created_at),
        }
    )


def _write_set_aside(entry: SetAside) -> dict[str, Any]:
    return _drop_none(
        {
            "annotator": entry.annotator,
            "status": entry.status,
            "reason": entry.reason or None,
            "seconds": entry.seconds,
            "comment": entry.comment or None,
            "revision": entry.revision,
            "created_at": _iso(entry.created_at),
        }
    )


def _set_aside(value: object, *, where: str) -> SetAside:
    if not isinstance(value, dict) or value.get("status") not in ("skipped", "flagged"):
        raise BadInput(f"{where}: 'set_aside' entries have a status 'skipped' or 'flagged'. Correct or delete it.")
    return SetAside(
        annotator=_name(value.get("annotator"), "annotator", where=where) or "imported",
        status=value["status"],
        reason=_text(value.get("reason") or "", "the reason", where=where),
        seconds=_seconds(value.get("seconds"), where=where),
        comment=_text(value.get("comment") or "", "the comment", where=where),
        revision=_revision(value.get("revision"), where=where),
        created_at=_time(value.get("created_at"), where=where),
    )


def _metadata(row: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """What the row says beyond the keys we know is kept: `metadata` itself and every unknown key."""
    given = row.get("metadata") or {}
    if not isinstance(given, dict):
        raise BadInput(f"{where}: 'metadata' is {_kind(given)}; it must be an object. Correct or delete it.")
    merged = {**{k: v for k, v in row.items() if k not in ROW_KEYS}, **given}
    if not merged:
        return merged
    try:
        text = json.dumps(merged, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{where}: the metadata is no valid JSON ({error}). Correct or delete it.") from None
    # JSON escapes a NUL; an escaped backslash before it means the six characters themselves, which are harmless.
    check_text(text.replace("\\\\", "").replace("\\u0000", "\x00"), "the metadata", where=where)
    return merged


def _with_content_id(record: PromptRecord) -> PromptRecord:
    return PromptRecord(**{**record.__dict__, "id": record.content_hash[:16]})


def _text(value: object, what: str, *, where: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where}: {what} is {_kind(value)}; it must be text.")
    return check_text(value, what, where=where)


def _name(value: object, what: str, *, where: str) -> str:
    """An id, model or annotator: short text (numbers are taken as text), empty when absent."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadInput(f"{where}: '{what}' is {_kind(value)}; it must be text.")
    if any(ord(c) < 32 for c in value):
        raise BadInput(f"{where}: '{what}' holds a control character. Delete it.")
    return check_text(value.strip(), f"'{what}'", where=where, limit=MAX_NAME_CHARS)


def _seconds(value: object, *, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadInput(f"{where}: 'seconds' must be a number of at least 0. Correct it or leave it out.")
    return float(value)


def _revision(value: object, *, where: str) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise BadInput(f"{where}: 'revision' must be a whole number of at least 1. Correct it or leave it out.")
    return value


def _time(value: object, *, where: str) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadInput(f"{where}: 'created_at' must be an ISO 8601 time. Correct it or leave it out.") from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _list(value: object, what: str, *, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadInput(f"{where}: '{what}' is {_kind(value)}; it must be a list. Correct it or leave it out.")
    return value


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None


def _drop_none(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if v is not None}


def _canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
