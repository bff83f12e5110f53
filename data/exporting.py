"""From the store to a dataset folder, and from a dataset folder (or any file an import reads) to records.

An export is a function of the project's content: no clock, no random number, so twice gives the same bytes. Every pair
of every ranking is exported, or counted with the reason why not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from data.comparisons import Comparison, expand
from data.dataset_card import dataset_card
from data.dataset_folder import (
    CARD,
    KIND,
    MANIFEST,
    RANKINGS,
    SCHEMA_VERSION,
    HashedFile,
    file_sha256,
    new_folder,
    read_manifest,
)
from data.entities import Counts, Project
from data.errors import BadInput
from data.importing import read_records
from data.json_lines import encode_json
from data.records import AnnotatorRanking, PromptRecord, write_record
from data.splits import EVAL, TRAIN, check_eval_fraction, split_of
from data.tally import Tally
from data.trl import trl_lines

EXPORT_FORMATS = {"trl": trl_lines}
"""What makes the lines of each trainer format from a record and the pairs of one ranking."""
AGGREGATES = ("each",)
DEFAULT_EVAL_FRACTION = 0.1
LEFT_OUT = ("tie", "unranked", "identical_texts")

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


class ExportSource(Protocol):
    """What an export asks of a `Store`. Named here so that reading a dataset loads no database library."""

    def records(self, project_id: int) -> Iterator[PromptRecord]: ...
    def counts(self, project_id: int) -> Counts: ...


@dataclass(frozen=True)
class Dataset:
    """What a training reads. `split` of each record is `train` or `eval`.

    `manifest_sha256` names the exact content: the hash of `manifest.json`, or of the file where there is no manifest.
    """

    records: tuple[PromptRecord, ...]
    manifest_sha256: str
    path: Path


@dataclass(frozen=True)
class Pairs:
    """The pairs of one ranking: `kept` for trainers, `left_out` by reason; together K(K-1)/2."""

    kept: tuple[Comparison, ...]
    left_out: Mapping[str, int]


def pairs_of(record: PromptRecord, entry: AnnotatorRanking) -> Pairs:
    """The pairs that a pair format can hold: ties have no winner, and equal texts teach nothing.

    The weights of the kept pairs sum to 1, so the ranking counts once.
    """
    expansion = expand(entry.ranking, len(record.responses), ties=False)
    texts = [response.text for response in record.responses]
    kept = [c for c in expansion.comparisons if texts[c.chosen - 1] != texts[c.rejected - 1]]
    left_out = {
        "tie": expansion.ties_left_out,
        "unranked": expansion.unranked,
        "identical_texts": len(expansion.comparisons) - len(kept),
    }
    if left_out["identical_texts"]:
        kept = [replace(c, weight=1 / len(kept)) for c in kept]
    return Pairs(tuple(kept), left_out)


def export_dataset(
    store: ExportSource,
    project: Project,
    *,
    formats: Sequence[str],
    out: Path,
    aggregate: str = "each",
    eval_fraction: float = 0.0,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the project as a dataset folder at `out`, from one snapshot of the store; returns the manifest.

    `out` may be new, empty, or an earlier export of this project (of another one with `force`). It is replaced whole at
    the end, or left as it was. `eval_fraction`: the share of prompts in the eval split. Raises UserError.
    """
    _check_choices(formats, aggregate)
    check_eval_fraction(eval_fraction)
    with new_folder(out, project=project.name, force=force) as folder, ExitStack() as stack:
        export = _Export(project, tuple(dict.fromkeys(formats)), aggregate, eval_fraction)
        export.open_files(folder, stack)
        records = stack.enter_context(closing(_snapshot(store, project)))
        total = store.counts(project.id).prompts if progress else None
        for record in tqdm(records, desc="export", total=total, unit=" prompts", disable=None if progress else True):
            export.add(record)
        return export.finish(folder)


def read_dataset(path: Path, *, eval_fraction: float | None = None) -> Dataset:
    """A dataset folder, or any file that an import reads, as records with their split.

    A folder exported with an eval split keeps it. Otherwise prompts are split by hash, `eval_fraction` of them (default
    0.1) into eval. Raises BadInput (a damaged folder, a bad row), NotFound.
    """
    fraction = check_eval_fraction(DEFAULT_EVAL_FRACTION if eval_fraction is None else eval_fraction)
    if not path.is_dir():
        records = tuple(replace(r, split=split_of(r, fraction)) for r in read_records(path))
        return Dataset(records, file_sha256(path), path)
    manifest = read_manifest(path)
    found = read_records(path / RANKINGS, format="native") if manifest.content["counts"]["prompts"] else iter(())
    if EVAL in manifest.content["splits"]:
        return Dataset(tuple(found), manifest.sha256, path)
    return Dataset(tuple(replace(r, split=split_of(r, fraction)) for r in found), manifest.sha256, path)


def _snapshot(store: ExportSource, project: Project) -> Generator[PromptRecord, None, None]:
    """The project's records as a generator, so that closing it ends the store's read transaction."""
    yield from store.records(project.id)


def _check_choices(formats: Sequence[str], aggregate: str) -> None:
    for name in formats:
        if name not in EXPORT_FORMATS:
            raise BadInput(f"--format {name}: there is no such format. Use {', '.join(EXPORT_FORMATS)}.")
    if aggregate not in AGGREGATES:
        raise BadInput(f"--aggregate {aggregate}: there is no such way. Use {', '.join(AGGREGATES)}.")


@dataclass
class _SplitTotals:
    prompts: int = 0
    rankings: int = 0
    pairs: int = 0


@dataclass
class _Export:
    """One export on its way: open files and running totals."""

    project: Project
    formats: tuple[str, ...]
    aggregate: str
    eval_fraction: float
    tally: Tally = field(default_factory=Tally)
    without_ranking: int = 0
    pairs_total: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    languages: set[str] = field(default_factory=set)
    latest: datetime | None = None
    files: dict[str, HashedFile] = field(default_factory=dict)
    splits: dict[str, _SplitTotals] = field(default_factory=dict)

    def open_files(self, folder: Path, stack: ExitStack) -> None:
        self.splits = {name: _SplitTotals() for name in ([TRAIN, EVAL] if self.eval_fraction else [TRAIN])}
        for name in [RANKINGS, *(f"{f}/{s}.jsonl" for f in self.formats for s in self.splits)]:
            self.files[name] = stack.enter_context(HashedFile(folder / name))

    def add(self, record: PromptRecord) -> None:
        record = replace(record, split=split_of(record, self.eval_fraction))
        self.files[RANKINGS].write_rows([encode_json(write_record(record))])
        self.tally.add(record)
        self._note_facts(record)
        totals = self.splits[record.split]
        totals.prompts += 1
        for entry in record.rankings:
            totals.rankings += 1
            pairs = self._pairs(record, entry)
            totals.pairs += len(pairs)
            for name in self.formats:
                self.files[f"{name}/{record.split}.jsonl"].write_rows(list(EXPORT_FORMATS[name](record, pairs)))

    def finish(self, folder: Path) -> dict[str, Any]:
        for file in self.files.values():
            file.close()
        manifest = self._manifest()
        card = dataset_card(manifest, languages=sorted(self.languages), guidelines=self.project.guidelines)
        with HashedFile(folder / CARD) as file:
            file.write_text(card)
        manifest["files"][CARD] = {k: v for k, v in file.facts().items() if k != "rows"}
        with HashedFile(folder / MANIFEST) as file:
            file.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
        return manifest

    def _pairs(self, record: PromptRecord, entry: AnnotatorRanking) -> tuple[Comparison, ...]:
        pairs = pairs_of(record, entry)
        responses = len(record.responses)
        self.pairs_total += responses * (responses - 1) // 2
        self.left_out.update(pairs.left_out)
        return pairs.kept

    def _note_facts(self, record: PromptRecord) -> None:
        self.without_ranking += not record.rankings
        language = record.metadata.get("lang") or record.metadata.get("language")
        if isinstance(language, str) and _LANGUAGE.fullmatch(language):
            self.languages.add(language)
        times = [r.created_at for r in record.rankings if r.created_at]
        times += [s.created_at for s in record.set_aside if s.created_at]
        self.latest = max([*times, *([self.latest] if self.latest else [])], default=None)

    def _manifest(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "project": self.project.name,
            "formats": list(self.formats),
            "aggregate": self.aggregate,
            "eval_fraction": self.eval_fraction,
            "latest_decision_at": self.latest.astimezone(UTC).isoformat() if self.latest else None,
            "counts": {
                "prompts": tally.prompts,
                "responses": tally.responses,
                "rankings": tally.rankings,
                "annotators": len(tally.annotators),
                "rankings_with_ties": tally.rankings_with_ties,
                "rankings_partial": tally.rankings_partial,
                "rankings_with_bar": tally.rankings_with_bar,
                "prompts_without_ranking": self.without_ranking,
                "skipped": tally.skipped,
                "flagged": tally.flagged,
            },
            "responses_per_prompt": {str(k): n for k, n in sorted(tally.responses_per_prompt.items())},
            "annotators": dict(sorted(tally.annotators.items())),
            "pairs": {
                "total": self.pairs_total,
                "exported": sum(totals.pairs for totals in self.splits.values()),
                "left_out": {reason: self.left_out[reason] for reason in LEFT_OUT},
            },
            "splits": {name: vars(totals) for name, totals in self.splits.items()},
            "files": {name: file.facts() for name, file in self.files.items()},
        }
