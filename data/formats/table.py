"""Tables: `prompt,response_1…response_K[,ranking][,annotator][,id]`, separated by commas, tabs or semicolons.

Every other column becomes metadata. A row may have fewer responses than the table has columns: the last are empty.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import BadInput
from data.formats import Row
from data.formats.lines import Source, read_lines
from data.records import MAX_TEXT_CHARS, read_record

NAMED_COLUMNS = ("prompt", "ranking", "annotator", "id")
_RESPONSE = re.compile(r"response_([1-9][0-9]{0,3})")
_SEPARATORS = (",", "\t", ";")


@dataclass(frozen=True)
class Header:
    """Where the columns are. `responses[n - 1]` is the position of `response_n`."""

    separator: str
    columns: int
    named: dict[str, int]
    responses: tuple[int, ...]
    other: dict[str, int]


def is_header(text: str) -> bool:
    """Does this line open a table that we can read?"""
    return any("prompt" in (names := _names(text, s)) and "response_1" in names for s in _SEPARATORS)


def read_table(source: Source, *, min_responses: int) -> Iterator[Row]:
    """The rows of a table with a header line; a quoted cell may hold line breaks. Raises BadInput."""
    # The csv module keeps its limit on the size of a cell in one place for the whole process; its default is 128 KiB.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TEXT_CHARS + 1))
    first = next(read_lines(source), None)
    if first is None:
        raise BadInput(f"{source.name}: the file is empty; a table has a header line and rows. Check the file.")
    header = _header(source, first.number, first.text, needs_responses=min_responses > 0)
    lines = (line.text for line in read_lines(source, verbatim=True))
    reader = csv.reader(lines, delimiter=header.separator, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadInput(f"{source.at(start)}: {_meaning(error, header.separator)}") from None
        if cells is None:
            return
        if start > first.number and any(cells):
            row = _row(cells, header, where=source.at(start))
            yield Row(start, read_record(row, where=source.at(start), min_responses=min_responses))


def _names(text: str, separator: str) -> list[str]:
    """The column names; ours in any letter case, others as they are written."""
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=separator), [])]
    except csv.Error:
        return []
    ours = [name.lower() in NAMED_COLUMNS or _RESPONSE.fullmatch(name.lower()) for name in names]
    return [name.lower() if known else name for name, known in zip(names, ours, strict=True)]


def _header(source: Source, number: int, text: str, *, needs_responses: bool) -> Header:
    where = source.at(number)
    if "\r" in text:
        raise BadInput(
            f"{where}: lines end in a lone carriage return; a line ends in LF or CR LF. Save the file again."
        )
    separator = max(_SEPARATORS, key=lambda s: ("prompt" in _names(text, s), len(_names(text, s))))
    names = _names(text, separator)
    for name in names:
        if name and names.count(name) > 1:
            raise BadInput(f"{where}: two columns are named '{name:.60}'; a column name stands once. Rename one.")
    positions = {name: position for position, name in enumerate(names) if name}
    numbers = sorted(int(match[1]) for name in positions if (match := _RESPONSE.fullmatch(name)))
    if "prompt" not in positions or (needs_responses and not numbers):
        found = ", ".join(names[:8])[:200] or "no column at all"
        raise BadInput(
            f"{where}: the columns are {found}; a table needs prompt, response_1, response_2 and so on. Rename them."
        )
    if numbers != list(range(1, len(numbers) + 1)):
        missing = min(set(range(1, numbers[-1] + 1)) - set(numbers))
        raise BadInput(
            f"{where}: no column response_{missing}; responses are numbered from 1 without a gap. Rename them."
        )
    return Header(
        separator=separator,
        columns=len(names),
        named={name: positions[name] for name in NAMED_COLUMNS if name in positions},
        responses=tuple(positions[f"response_{n}"] for n in numbers),
        other={n: p for n, p in positions.items() if n not in NAMED_COLUMNS and not _RESPONSE.fullmatch(n)},
    )


def _row(cells: Sequence[str], header: Header, *, where: str) -> dict[str, Any]:
    """The table row as a native row."""
    if any(cells[header.columns :]):
        raise BadInput(
            f"{where}: {len(cells)} cells under {header.columns} columns; a text with a separator in it stands in "
            "double quotes. Quote it."
        )

    def cell(position: int) -> str:
        return cells[position] if position < len(cells) else ""

    row: dict[str, Any] = {name: cell(position) for name, position in header.named.items() if cell(position).strip()}
    row.setdefault("prompt", "")
    row["responses"] = _responses([cell(position) for position in header.responses], where=where)
    row["metadata"] = {name: cell(position) for name, position in header.other.items() if cell(position)}
    return row


def _responses(texts: list[str], *, where: str) -> list[str]:
    while texts and not texts[-1].strip():
        texts = texts[:-1]
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise BadInput(
                f"{where}: response_{number} is empty and a later one is not; labels count from A1 without a gap. "
                "Move the responses to the left."
            )
    return texts


def _meaning(error: csv.Error, separator: str) -> str:
    """The csv module's complaint in the user's words."""
    text = str(error)
    if "field limit" in text or "end of data" in text:
        return "a cell opens with a double quote that never closes; quotes come in pairs. Close it, or double it."
    if "expected after" in text:
        shown = "a tab" if separator == "\t" else f"'{separator}'"
        return f"a closing double quote is not followed by {shown}; a quote inside a text is doubled. Double it."
    return f"the table cannot be read ({text}). Save it again as CSV UTF-8."
