"""Bring prompts, responses and rankings from files into a project, all or nothing.

Files are read twice: the first reading checks every row and counts, the second one hands the rows to the store. So a
mistake on the last line is found before anything is written, and memory does not grow with the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from data.entities import Added, Project
from data.errors import BadInput, NotFound
from data.formats import FORMATS, LeftOut, Row
from data.formats.detect import detect_format
from data.formats.lines import Source, source_of
from data.formats.native import read_native
from data.formats.oasst import read_oasst
from data.formats.seen import Decision, SeenRows, decisions_of
from data.formats.table import read_table
from data.import_report import ImportReport
from data.records import AnnotatorRanking, PromptRecord, SetAside, check_name
from data.tally import Tally

_READERS = {"native": read_native, "csv": read_table, "oasst": read_oasst}
REPEATED = "rows that repeat an earlier row"


class ImportTarget(Protocol):
    """What an import asks of a `Store`. Named here so that reading a file loads no database library."""

    def project(self, name: str) -> Project: ...
    def create_project_with(self, name: str, records: Iterable[PromptRecord]) -> Added: ...
    def records(self, project_id: int) -> Iterator[PromptRecord]: ...
    def add_prompts(self, project_id: int, records: Iterable[PromptRecord]) -> Added: ...


def read_records(
    path: Path, *, format: str | None = None, min_responses: int = 2, name: str | None = None
) -> Iterator[PromptRecord]:
    """The records of a file, once the whole file has passed every check.

    `format`: one of `FORMATS`, detected when None. `min_responses`: 0 reads prompts alone, 1 also single responses.
    `name`: what messages call the file, its path when None. Rows of one prompt with different annotators come as one
    record. Raises BadInput with file and line, NotFound.
    """
    inputs = _inputs([source_of(path, name=name)], format, min_responses)
    with SeenRows() as seen:
        survey = _survey(inputs, seen)
    yield from _records(inputs, survey)


def inspect_file(path: Path, *, format: str | None = None, name: str | None = None) -> ImportReport:
    """Check a whole file and say what is in it; touches no store. Raises BadInput with file and line, NotFound."""
    inputs = _inputs([source_of(path, name=name)], format, 2)
    with SeenRows() as seen:
        return _report(inputs, _survey(inputs, seen))


def import_file(
    store: ImportTarget,
    project_name: str,
    path: Path,
    *,
    format: str | None = None,
    dry_run: bool = False,
    create: bool = True,
    name: str | None = None,
) -> ImportReport:
    """Import one file; see `import_files`. `name`: what messages call the file, its path when None."""
    sources = [source_of(path, name=name)]
    return _import(store, project_name, sources, format=format, dry_run=dry_run, create=create, progress=False)


def import_files(
    store: ImportTarget,
    project_name: str,
    paths: Sequence[Path],
    *,
    format: str | None = None,
    dry_run: bool = False,
    create: bool = True,
    progress: bool = False,
) -> ImportReport:
    """Check all files, then add all their rows to the project in one transaction, or none.

    Rows that are there already are counted, not doubled. `create`: make the project where it is missing.
    `dry_run`: check and report, write nothing. `progress`: a bar on standard error when that is a terminal.
    Raises BadInput with file and line, NotFound.
    """
    sources = [source_of(path) for path in paths]
    return _import(store, project_name, sources, format=format, dry_run=dry_run, create=create, progress=progress)


@dataclass(frozen=True)
class _Input:
    source: Source
    format: str
    min_responses: int

    def rows(self) -> Iterator[Row | LeftOut]:
        return _READERS[self.format](self.source, min_responses=self.min_responses)


@dataclass(frozen=True)
class _Survey:
    """What the first reading learned. `repeats`: running numbers of rows to skip, `joined`: what they add, by id."""

    tally: Tally
    left_out: Mapping[str, int]
    repeats: frozenset[int]
    joined: Mapping[str, tuple[Decision, ...]]
    without_ranking: int


def _inputs(sources: Sequence[Source], format: str | None, min_responses: int) -> list[_Input]:
    if format is not None and format not in FORMATS:
        raise BadInput(f"--format {format}: there is no such format. Use one of {', '.join(FORMATS)}, or leave it out.")
    return [_Input(s, format or detect_format(s, min_responses=min_responses), min_responses) for s in sources]


def _survey(inputs: Sequence[_Input], seen: SeenRows, *, progress: bool = False) -> _Survey:
    """Read and check every row of every file; count, find repetitions."""
    tally, left_out = Tally(), Counter[str]()
    repeats: set[int] = set()
    joined: dict[str, tuple[Decision, ...]] = {}
    number = 0
    for item in inputs:
        before = tally.prompts
        for row in tqdm(
            item.rows(), desc=f"check {item.source.name}", unit=" rows", disable=None if progress else True
        ):
            if isinstance(row, LeftOut):
                left_out[row.what] += row.count
                continue
            number += 1
            added = seen.note(row.record, where=item.source.at(row.line))
            if added is None:
                tally.add(row.record)
                continue
            repeats.add(number)
            tally.add_decisions(added, len(row.record.responses))
            left_out[REPEATED] += not added
            if added:
                joined[row.record.id] = joined.get(row.record.id, ()) + added
        if tally.prompts == before and not repeats:
            raise BadInput(_nothing_found(item, left_out))
    return _Survey(tally, +left_out, frozenset(repeats), joined, seen.without_ranking())


def _nothing_found(item: _Input, left_out: Mapping[str, int]) -> str:
    if left_out:
        counted = ", ".join(f"{count} {what}" for what, count in left_out.items())
        return (
            f"{item.source.name}: no prompt that can be ranked ({counted} left out). Name a file with ranked replies."
        )
    return f"{item.source.name}: no rows; an import needs one row at least. Check the file."


def _records(inputs: Sequence[_Input], survey: _Survey) -> Iterator[PromptRecord]:
    """The second reading: every prompt once, with the decisions that later rows add to it."""
    number = 0
    for item in inputs:
        for row in item.rows():
            if isinstance(row, LeftOut):
                continue
            number += 1
            if number not in survey.repeats:
                yield _with_decisions(row.record, survey.joined.get(row.record.id, ()))


def _with_decisions(record: PromptRecord, more: Sequence[Decision]) -> PromptRecord:
    if not more:
        return record
    rankings = tuple(d for d in more if isinstance(d, AnnotatorRanking))
    set_aside = tuple(d for d in more if isinstance(d, SetAside))
    return replace(record, rankings=record.rankings + rankings, set_aside=record.set_aside + set_aside)


def _import(
    store: ImportTarget,
    project_name: str,
    sources: Sequence[Source],
    *,
    format: str | None,
    dry_run: bool,
    create: bool,
    progress: bool,
) -> ImportReport:
    project_name = check_name(project_name, "project")
    project = _find_project(store, project_name, create=create)
    inputs = _inputs(sources, format, 2)
    with SeenRows() as seen:
        survey = _survey(inputs, seen, progress=progress)
        report = replace(_report(inputs, survey), project=project_name, dry_run=dry_run)
        if dry_run:
            there = _compare(store, project, seen) if project else _There(0, 0)
            return report.against(there.prompts, there.rankings)
        rows: Iterable[PromptRecord] = tqdm(
            _records(inputs, survey),
            desc="store",
            total=survey.tally.prompts,
            unit=" prompts",
            disable=None if progress else True,
        )
        try:
            added = store.add_prompts(project.id, rows) if project else store.create_project_with(project_name, rows)
        except BadInput:
            if project:
                _compare(store, project, seen)  # says the same with file and line
            raise
    return report.against(added.already_there, added.rankings_already_there)


def _find_project(store: ImportTarget, name: str, *, create: bool) -> Project | None:
    try:
        return store.project(name)
    except NotFound:
        if not create:
            raise
        return None


@dataclass(frozen=True)
class _There:
    """How much of an import a project has already."""

    prompts: int
    rankings: int


def _compare(store: ImportTarget, project: Project, seen: SeenRows) -> _There:
    """Hold the project's prompts against the rows of an import. Raises BadInput, naming the row that contradicts."""
    prompts = rankings = 0
    for record in store.records(project.id):
        row = seen.find(record.id)
        if row is None:
            continue
        prompts += 1
        if row.content != record.content_hash:
            raise BadInput(
                f"{row.where}: id '{record.id}' stands for another prompt or other responses in project "
                f"'{project.name}'; an id names one content for good. Give the row a new id, or import into another "
                "project."
            )
        there = decisions_of(record)
        for name in row.said.keys() & there.keys():
            if row.said[name] != there[name]:
                raise BadInput(
                    f"{row.where}: '{name}' has '{row.said[name]}' here and '{there[name]}' in project "
                    f"'{project.name}'; an import never overwrites a person's judgement. Change it on the ranking "
                    "page, or rename the annotator."
                )
            rankings += row.said[name] not in ("skipped", "flagged")
    return _There(prompts, rankings)


def _report(inputs: Sequence[_Input], survey: _Survey) -> ImportReport:
    tally = survey.tally
    return ImportReport(
        files=tuple(i.source.name for i in inputs),
        formats=tuple(dict.fromkeys(i.format for i in inputs)),
        prompts=tally.prompts,
        responses=tally.responses,
        responses_per_prompt=dict(sorted(tally.responses_per_prompt.items())),
        without_ranking=survey.without_ranking,
        rankings=tally.rankings,
        rankings_with_ties=tally.rankings_with_ties,
        rankings_partial=tally.rankings_partial,
        annotators=dict(tally.annotators.most_common()),
        skipped=tally.skipped,
        flagged=tally.flagged,
        left_out=dict(survey.left_out),
    )
