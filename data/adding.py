"""Add prompts with their responses and rankings, in chunks. Runs inside the caller's transaction, never commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from data.decisions import rank_rows, stored_ranking
from data.entities import Added, Annotator
from data.errors import BadInput
from data.records import AnnotatorRanking, PromptRecord, SetAside
from data.schema import AnyRow, annotator, assignment, prompt, rank, ranking, response
from data.shown_order import new_seed

CHUNK_PROMPTS = 500

Decision = AnnotatorRanking | SetAside


def ensure_annotator(connection: Connection, name: str, *, at: datetime) -> Annotator:
    """The annotator of that name, made on first sight."""
    found = connection.execute(select(annotator.c.id).where(annotator.c.name == name)).scalar()
    if found is None:
        values = {"name": name, "created_at": at}
        found = connection.execute(insert(annotator).values(values).returning(annotator.c.id)).scalar_one()
    return Annotator(found, name)


def add_prompts(connection: Connection, project_id: int, records: Iterable[PromptRecord], *, at: datetime) -> Added:
    """See `Store.add_prompts`."""
    job = _Adding(connection, project_id, at)
    for chunk in _chunks(records):
        job.add(chunk)
    return Added(job.prompts, job.already_there, job.rankings, job.rankings_already_there)


def _chunks(records: Iterable[PromptRecord]) -> Iterator[list[PromptRecord]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK_PROMPTS)):
        yield chunk


class _Adding:
    """The running totals of one import."""

    def __init__(self, connection: Connection, project_id: int, at: datetime) -> None:
        self.connection = connection
        self.project_id = project_id
        self.at = at
        self.annotator_ids: dict[str, int] = {}
        self.seeds: dict[tuple[int, int], int] = {}
        self.prompts = self.already_there = self.rankings = self.rankings_already_there = 0

    def add(self, chunk: Sequence[PromptRecord]) -> None:
        known = self._known(chunk)
        new = [record for record in chunk if record.id not in known]
        self._refuse_double_ids(new)
        prompt_ids = {record.id: row.id for record in chunk if (row := known.get(record.id))}
        prompt_ids |= self._insert_prompts(new)
        self.prompts += len(new)
        self.already_there += len(chunk) - len(new)
        self._insert_decisions(new, prompt_ids)
        for record in chunk:
            if record.id in known:
                self._add_missing_decisions(record, prompt_ids[record.id])

    def _known(self, chunk: Sequence[PromptRecord]) -> dict[str, AnyRow]:
        query = select(prompt.c.id, prompt.c.external_id, prompt.c.content_hash).where(
            prompt.c.project_id == self.project_id, prompt.c.external_id.in_([record.id for record in chunk])
        )
        known = {row.external_id: row for row in self.connection.execute(query)}
        for record in chunk:
            if record.id in known and known[record.id].content_hash != record.content_hash:
                raise BadInput(
                    f"prompt '{record.id}': this id stands for another prompt or other responses in the project; an id "
                    "names one content for good. Give the changed row a new id, or import into another project."
                )
        return known

    @staticmethod
    def _refuse_double_ids(new: Sequence[PromptRecord]) -> None:
        ids: set[str] = set()
        for record in new:
            if record.id in ids:
                raise BadInput(f"prompt '{record.id}': this id stands twice in the import. Keep one of the rows.")
            ids.add(record.id)

    def _insert_prompts(self, new: Sequence[PromptRecord]) -> dict[str, int]:
        if not new:
            return {}
        rows = [
            {
                "project_id": self.project_id,
                "external_id": record.id,
                "messages": [{"role": m.role, "content": m.content} for m in record.prompt],
                "metadata": dict(record.metadata),
                "content_hash": record.content_hash,
                "created_at": self.at,
            }
            for record in new
        ]
        statement = insert(prompt).returning(prompt.c.id, prompt.c.external_id)
        ids = {row.external_id: row.id for row in self.connection.execute(statement, rows)}
        self.connection.execute(
            insert(response),
            [
                {
                    "prompt_id": ids[record.id],
                    "number": number,
                    "text": answer.text,
                    "model": answer.model,
                    "external_id": answer.id,
                }
                for record in new
                for number, answer in enumerate(record.responses, start=1)
            ],
        )
        return ids

    def _insert_decisions(self, new: Sequence[PromptRecord], prompt_ids: dict[str, int]) -> None:
        """Rankings, skips and flags of prompts that were just added: three inserts for the whole chunk."""
        rows = [(prompt_ids[record.id], decision) for record in new for decision in _decisions(record)]
        if not rows:
            return
        statement = insert(ranking).returning(ranking.c.id, ranking.c.prompt_id, ranking.c.annotator_id)
        values = [self._decision_values(prompt_id, decision) for prompt_id, decision in rows]
        inserted = {(r.prompt_id, r.annotator_id): r.id for r in self.connection.execute(statement, values)}
        self.connection.execute(insert(assignment), [self._assignment_values(v) for v in values])
        responses = self._responses([prompt_id for prompt_id, _ in rows])
        ranks: list[dict[str, Any]] = []
        for (prompt_id, decision), value in zip(rows, values, strict=True):
            if isinstance(decision, AnnotatorRanking):
                ranking_id = inserted[prompt_id, value["annotator_id"]]
                judged, order = decision.ranking, decision.order
                ranks += rank_rows(ranking_id, responses[prompt_id], judged=judged, order=order)
        if ranks:
            self.connection.execute(insert(rank), ranks)
        self.rankings += sum(isinstance(decision, AnnotatorRanking) for _, decision in rows)

    def _add_missing_decisions(self, record: PromptRecord, prompt_id: int) -> None:
        """A prompt that was there already: take decisions of people who have none, refuse those that differ."""
        missing: list[Decision] = []
        for decision in _decisions(record):
            annotator_id = self._annotator_id(decision.annotator)
            stored = self._stored(prompt_id, annotator_id)
            if stored is None:
                missing.append(decision)
            elif stored.state == "open":
                # On the person's screen, undecided: the import decides it, after whatever was taken back before.
                missing.append(replace(decision, revision=max(decision.revision, stored.revision + 1)))
                self._close(prompt_id, annotator_id, seed=stored.seed)
            else:
                self._refuse_difference(record, decision, stored)
                self.rankings_already_there += isinstance(decision, AnnotatorRanking)
        if missing:
            rest = PromptRecord(
                id=record.id,
                prompt=record.prompt,
                responses=record.responses,
                rankings=tuple(d for d in missing if isinstance(d, AnnotatorRanking)),
                set_aside=tuple(d for d in missing if isinstance(d, SetAside)),
            )
            self._insert_decisions([rest], {record.id: prompt_id})

    def _stored(self, prompt_id: int, annotator_id: int) -> AnyRow | None:
        """The annotator's current decision, or the mere fact that the prompt is open on their screen."""
        query = (
            select(assignment.c.state, assignment.c.revision, assignment.c.seed, ranking.c.id, ranking.c.bar)
            .outerjoin(
                ranking,
                (ranking.c.prompt_id == assignment.c.prompt_id)
                & (ranking.c.annotator_id == assignment.c.annotator_id)
                & (ranking.c.revision == assignment.c.revision),
            )
            .where(assignment.c.prompt_id == prompt_id, assignment.c.annotator_id == annotator_id)
        )
        return self.connection.execute(query).one_or_none()

    def _close(self, prompt_id: int, annotator_id: int, *, seed: int) -> None:
        """Make room for the assignment that comes with the decision; it keeps the order that is on the screen."""
        self.seeds[prompt_id, annotator_id] = seed
        key = (assignment.c.prompt_id == prompt_id) & (assignment.c.annotator_id == annotator_id)
        self.connection.execute(delete(assignment).where(key))

    def _refuse_difference(self, record: PromptRecord, decision: Decision, stored: AnyRow) -> None:
        here = str(stored_ranking(self.connection, stored)) if stored.state == "ranked" else stored.state
        said = str(decision.ranking) if isinstance(decision, AnnotatorRanking) else decision.status
        if here != said:
            raise BadInput(
                f"prompt '{record.id}': '{decision.annotator}' has '{here}' here and '{said}' in the import; an import "
                "never overwrites a judgement. Change it on the ranking page, or rename the annotator."
            )

    def _decision_values(self, prompt_id: int, decision: Decision) -> dict[str, Any]:
        values = {
            "prompt_id": prompt_id,
            "annotator_id": self._annotator_id(decision.annotator),
            "revision": decision.revision,
            "seconds": decision.seconds,
            "comment": decision.comment,
            "source": "import",
            "created_at": decision.created_at or self.at,
        }
        if isinstance(decision, SetAside):
            return {**values, "status": decision.status, "reason": decision.reason, "bar": None}
        return {**values, "status": "ranked", "reason": "", "bar": decision.ranking.bar}

    def _assignment_values(self, decision: dict[str, Any]) -> dict[str, Any]:
        return {
            "project_id": self.project_id,
            "prompt_id": decision["prompt_id"],
            "annotator_id": decision["annotator_id"],
            "seed": self.seeds.pop((decision["prompt_id"], decision["annotator_id"]), None) or new_seed(),
            "state": decision["status"],
            "revision": decision["revision"],
        }

    def _annotator_id(self, name: str) -> int:
        if name not in self.annotator_ids:
            self.annotator_ids[name] = ensure_annotator(self.connection, name, at=self.at).id
        return self.annotator_ids[name]

    def _responses(self, prompt_ids: Sequence[int]) -> dict[int, list[AnyRow]]:
        query = select(response.c.prompt_id, response.c.number, response.c.id)
        found: dict[int, list[AnyRow]] = defaultdict(list)
        for row in self.connection.execute(query.where(response.c.prompt_id.in_(prompt_ids))):
            found[row.prompt_id].append(row)
        return found


def _decisions(record: PromptRecord) -> tuple[Decision, ...]:
    return (*record.rankings, *record.set_aside)
