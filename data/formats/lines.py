"""From bytes to lines of text, and from a line to JSON; every refusal names the place.

Lines end at the byte 0x0A only: U+2028 and its like are ordinary characters inside a JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import BadInput, NotFound

MAX_LINE_BYTES = 64 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
# The first bytes of what people hand over in place of a text file: what it is, and what to do.
_NOT_UTF8_TEXT = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "Save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "Save it as UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8"),
    (b"\x1f\x8b", "gzip data", "Unpack it first (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data", "Unpack it first (unzstd)"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "Unpack it, or save the sheet as 'CSV UTF-8'"),
    (b"PAR1", "a Parquet file", "Write it as JSON lines"),
    (b"SQLite format 3", "a SQLite database", "Export its rows as JSON lines"),
)


@dataclass(frozen=True)
class Source:
    """A file to read, and what messages call it."""

    path: Path
    name: str

    def at(self, line: int) -> str:
        """The place, as in `prompts.jsonl:17`."""
        return f"{self.name}:{line}"


@dataclass(frozen=True)
class Line:
    """One line of text; `number` starts at 1."""

    number: int
    text: str


def source_of(path: Path, *, name: str | None = None) -> Source:
    """The file at `path`, shown as `name` or as the path itself, line breaks and other traps made visible."""
    shown = name if name is not None else str(path)
    return Source(path, "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown))


def read_lines(source: Source, *, verbatim: bool = False) -> Iterator[Line]:
    """The lines of a UTF-8 file, with or without a byte order mark. Raises BadInput, NotFound.

    `verbatim`: with line ends and blank lines, which belong to the text inside a quoted cell.
    """
    _check_is_file(source)
    try:
        with source.path.open("rb") as file:
            start = 0
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if number == 1:
                    _check_is_text(source, raw)
                if len(raw) > MAX_LINE_BYTES:
                    raise BadInput(
                        f"{source.at(number)}: a line of over {MAX_LINE_BYTES // 2**20} MiB; one row is one line. "
                        "Break the file into lines."
                    )
                text = _decode(source, raw, number=number, start=start)
                start += len(raw)
                if verbatim or text.strip():
                    yield Line(number, text if verbatim else text.rstrip("\r\n"))
    except OSError as error:
        raise BadInput(f"{source.name}: cannot be read ({error.strerror}). Check the path and the rights.") from None


def parse_json(text: str, *, where: str) -> Any:
    """One JSON value, strictly: no NaN, no key twice. Raises BadInput with the column."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            found = (
                "the line ends inside a JSON value; one row is one line. Write each row on a single line (jq -c . FILE)"
            )
        else:
            found = f"column {error.colno}: {error.msg}; a row is one JSON object on one line. Correct it"
        raise BadInput(f"{where}: {found}.") from None
    except RecursionError:
        raise BadInput(f"{where}: JSON nested too deeply to read. Flatten the row or delete the line.") from None
    except _RefusedJsonError as error:
        raise BadInput(f"{where}: {error}") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise BadInput(f"{where}: a number that cannot be read ({error}). Correct it or write it as text.") from None


class _RefusedJsonError(ValueError):
    pass


def _no_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise _RefusedJsonError(f"the key {double!r:.60} stands twice in one object. Keep one of the two.")
    return built


def _no_constant(name: str) -> Any:
    raise _RefusedJsonError(f"{name} is no JSON number. Write null or leave the key out.")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_double_keys, parse_constant=_no_constant)


def _check_is_file(source: Source) -> None:
    if "\x00" in str(source.path):
        raise NotFound(f"{source.name}: no file name holds a NUL character. Check the path.")
    try:
        if source.path.is_file():
            return
        found = source.path.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise NotFound(f"{source.name}: cannot be opened ({error.strerror}). Check the path.") from None
    if not found:
        raise NotFound(f"{source.name}: there is no such file. Check the path.")
    kind = "a folder" if source.path.is_dir() else "no regular file"
    raise BadInput(f"{source.name}: this is {kind}; an import reads files. Name a file.")


def _check_is_text(source: Source, start: bytes) -> None:
    for magic, kind, remedy in _NOT_UTF8_TEXT:
        if start.startswith(magic):
            raise BadInput(f"{source.name}: this is {kind}; an import reads UTF-8 text. {remedy}.")
    if start[:4].count(0) == 2 and (start[1:4:2] == b"\0\0" or start[0:3:2] == b"\0\0"):
        raise BadInput(f"{source.name}: this is UTF-16 text; an import reads UTF-8 text. Save it as UTF-8.")


def _decode(source: Source, raw: bytes, *, number: int, start: int) -> str:
    skipped = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
    try:
        return raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + skipped + error.start
        raise BadInput(
            f"{source.at(number)}: byte 0x{error.object[error.start]:02x} at offset {offset} of the file is not UTF-8; "
            "an import reads UTF-8 text. Save the file as UTF-8 (in a spreadsheet: 'CSV UTF-8')."
        ) from None
