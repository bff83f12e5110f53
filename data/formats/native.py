"""Native rows: one JSON object a line (see `data.records`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.errors import BadInput
from data.formats import Row
from data.formats.lines import Source, parse_json, read_lines
from data.records import read_record

# Deeper metadata would pass here and fail later, at the recursion limit of a database driver or an encoder.
MAX_NESTING = 100


def read_native(source: Source, *, min_responses: int) -> Iterator[Row]:
    """The rows of a JSONL file. With `min_responses` 0 a row may have a prompt alone. Raises BadInput."""
    for line in read_lines(source):
        where = source.at(line.number)
        row = parse_json(line.text, where=where)
        if line.text.count("{") + line.text.count("[") > MAX_NESTING:
            _check_nesting(row, where=where)
        if min_responses == 0 and isinstance(row, dict):
            row.setdefault("responses", [])
        yield Row(line.number, read_record(row, where=where, min_responses=min_responses))


def _check_nesting(value: Any, *, where: str) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise BadInput(f"{where}: JSON nested more than {MAX_NESTING} levels deep. Flatten the row or delete the line.")
