"""The rows met so far in one import: tells a repeated id, its first place, and what the repetition adds.

Kept in a temporary SQLite file, so that a million ids cost a few megabytes of memory.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from types import TracebackType

from data.errors import BadInput
from data.records import AnnotatorRanking, PromptRecord, SetAside

Decision = AnnotatorRanking | SetAside


@dataclass(frozen=True)
class Seen:
    """The first row with an id. `said`: each annotator's ranking as notation, or 'skipped', 'flagged'."""

    where: str
    content: str
    said: dict[str, str]


class SeenRows:
    """Use as a context manager; the file goes with it."""

    def __init__(self) -> None:
        # An empty name is a private file that SQLite deletes; no journal, for nothing is ever taken back.
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT, content TEXT, said TEXT, ranked INT) WITHOUT ROWID"
        )
        self._rows.execute("BEGIN")

    def __enter__(self) -> SeenRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()

    def note(self, record: PromptRecord, *, where: str) -> tuple[Decision, ...] | None:
        """None for the first row with this id, else the decisions that this row adds to it (another annotator's).

        Raises BadInput where the id stands for other content, or a given id adds nothing.
        """
        content, said = record.content_hash, decisions_of(record)
        values = (record.id, where, content, json.dumps(said), bool(record.rankings))
        if self._rows.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?)", values).rowcount:
            return None
        first = self.find(record.id)
        assert first is not None
        if first.content != content:
            raise BadInput(
                f"{where}: id '{record.id}' also stands at {first.where}, for another prompt or other responses; an id "
                "names one row. Give this row another id."
            )
        for name in said.keys() & first.said.keys():
            if said[name] != first.said[name]:
                raise BadInput(
                    f"{where}: '{name}' has '{said[name]}' here and '{first.said[name]}' at {first.where} for the same "
                    "prompt; a person ranks a prompt once. Keep one of the rows."
                )
        added = said.keys() - first.said.keys()
        if not added and record.id != content[: len(record.id)]:
            raise BadInput(
                f"{where}: id '{record.id}' also stands at {first.where}; an id stands once. Delete one row."
            )
        merged = json.dumps({**first.said, **said})
        update = "UPDATE seen SET said = ?, ranked = max(ranked, ?) WHERE id = ?"
        self._rows.execute(update, (merged, bool(record.rankings), record.id))
        decisions: tuple[Decision, ...] = (*record.rankings, *record.set_aside)
        return tuple(d for d in decisions if d.annotator in added)

    def find(self, record_id: str) -> Seen | None:
        """The first row with this id."""
        row = self._rows.execute("SELECT place, content, said FROM seen WHERE id = ?", (record_id,)).fetchone()
        return Seen(row[0], row[1], json.loads(row[2])) if row else None

    def without_ranking(self) -> int:
        """How many ids nobody ranked."""
        return int(self._rows.execute("SELECT count(*) FROM seen WHERE ranked = 0").fetchone()[0])


def decisions_of(record: PromptRecord) -> dict[str, str]:
    """What each annotator said of a prompt: a ranking in notation, 'skipped' or 'flagged'."""
    return {r.annotator: str(r.ranking) for r in record.rankings} | {s.annotator: s.status for s in record.set_aside}
