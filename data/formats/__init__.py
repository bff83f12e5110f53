"""The file formats that an import reads; one module each, all yielding `Row` and `LeftOut`."""

from __future__ import annotations

from dataclasses import dataclass

from data.records import PromptRecord

FORMATS = ("native", "csv", "oasst")
"""`native`: one JSON object a line. `csv`: a table, also with tabs. `oasst`: Open-Assistant message trees."""


@dataclass(frozen=True)
class Row:
    """A checked record and the line it starts on."""

    line: int
    record: PromptRecord


@dataclass(frozen=True)
class LeftOut:
    """Something a reader knowingly did not take; `what` is a plural noun, as in '12 {what}'."""

    line: int
    what: str
    count: int = 1
