"""Tell a file's format by its first row, and by its name where that is not enough."""

from __future__ import annotations

import json
from typing import Any

from data.errors import BadInput
from data.formats import FORMATS
from data.formats.lines import Source, read_lines
from data.formats.table import is_header

_KNOWN = f"the formats are {', '.join(FORMATS)}"
_NATIVE_EXAMPLE = '{"prompt": "...", "responses": ["...", "..."]}'


def detect_format(source: Source, *, min_responses: int) -> str:
    """One of `FORMATS`. Raises BadInput with what was found and what would fit."""
    first = next(read_lines(source), None)
    if first is None:
        raise BadInput(f"{source.name}: the file is empty; an import needs one row at least. Check the file.")
    where, text, suffix = source.at(first.number), first.text.lstrip(), source.path.suffix.lower()
    if text.startswith("{"):
        return _json_format(text, where=where, min_responses=min_responses)
    if is_header(text) or suffix in (".csv", ".tsv"):
        return "csv"
    if text.startswith("["):
        raise BadInput(
            f"{where}: one JSON list; a row is one JSON object on one line. Write each entry on its own line "
            "(jq -c '.[]' FILE)."
        )
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "native"
    raise BadInput(
        f"{where}: the file starts with {text[:30]!r} and fits no format; {_KNOWN}. Write rows such as "
        f"{_NATIVE_EXAMPLE}."
    )


def _json_format(text: str, *, where: str, min_responses: int) -> str:
    try:
        row: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        return "native"  # its reader says what is wrong, and where
    if "message_tree_id" in row or (isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]):
        return "oasst"
    if "prompt" in row and ("responses" in row or min_responses == 0):
        return "native"
    found = ", ".join(sorted(map(str, row))[:8])[:200] or "no key at all"
    raise BadInput(f"{where}: the keys are {found}; {_advice(row)}")


def _advice(row: dict[str, Any]) -> str:
    if {"message_id", "parent_id", "role"} <= row.keys():
        return "these are single Open-Assistant messages, the import reads trees. Export trees, one a line."
    if "chosen" in row and "rejected" in row:
        return 'pairs are no format of this import. Write "responses": [chosen, rejected] and "ranking": "A1>A2".'
    if "prompt" in row:
        return (
            "prompts without responses cannot be ranked, a ranking needs at least 2. Add 'responses', or have a model "
            "write them: python -m train generate --prompts FILE --samples 4."
        )
    return f"this fits no format, {_KNOWN}. Write rows such as {_NATIVE_EXAMPLE}."
