"""Questions to the store. Functions here run inside the caller's transaction and change nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, and_, distinct, func, select

from data.decisions import ranking_from_ranks
from data.entities import Counts, HistoryEntry, Progress, Task
from data.notation import format_ranking
from data.records import AnnotatorRanking, Message, PromptRecord, Response, SetAside
from data.schema import AnyRow, annotator, assignment, prompt, rank, ranking, response
from data.shown_order import shown_labels, shown_order

CHUNK_PROMPTS = 500
HISTORY_TEXT_CHARS = 120

# The revision of a ranking that counts: the one its assignment points to.
_IS_CURRENT = and_(
    ranking.c.prompt_id == assignment.c.prompt_id,
    ranking.c.annotator_id == assignment.c.annotator_id,
    ranking.c.revision == assignment.c.revision,
)


def open_prompt(connection: Connection, project_id: int, annotator_id: int) -> int | None:
    """The prompt this annotator has open; of several, the one that an undo reopened last."""
    query = (
        select(assignment.c.prompt_id)
        .outerjoin(ranking, _IS_CURRENT)
        .where(
            assignment.c.project_id == project_id,
            assignment.c.annotator_id == annotator_id,
            assignment.c.state == "open",
        )
        .order_by(func.coalesce(ranking.c.id, 0).desc(), assignment.c.prompt_id)
        .limit(1)
    )
    return connection.execute(query).scalar()


def untouched_prompt(connection: Connection, project_id: int, annotator_id: int) -> int | None:
    """The next prompt never shown to this annotator, oldest first."""
    mine = (assignment.c.project_id == project_id) & (assignment.c.annotator_id == annotator_id)
    newest = connection.execute(select(func.max(assignment.c.prompt_id)).where(mine)).scalar() or 0
    of_project = select(prompt.c.id).where(prompt.c.project_id == project_id).order_by(prompt.c.id).limit(1)
    ahead: int | None = connection.execute(of_project.where(prompt.c.id > newest)).scalar()
    if ahead is not None:
        return ahead
    # Only at the end of the list is it worth looking for gaps that the history or an import left.
    shown = select(assignment.c.prompt_id).where(mine, assignment.c.prompt_id == prompt.c.id)
    return connection.execute(of_project.where(~shown.exists())).scalar()


def task(connection: Connection, prompt_id: int, annotator_id: int) -> Task:
    """The prompt as this annotator sees it; it must be assigned."""
    row = connection.execute(
        select(prompt.c.external_id, prompt.c.messages, assignment)
        .join(assignment, assignment.c.prompt_id == prompt.c.id)
        .where(prompt.c.id == prompt_id, assignment.c.annotator_id == annotator_id)
    ).one()
    texts = dict(_number_and_text(connection, prompt_id))
    order = shown_order(row.seed, len(texts))
    answer, said = _current_ranking(connection, row, order) if row.state == "ranked" else ("", "")
    return Task(
        project_id=row.project_id,
        prompt_id=prompt_id,
        external_id=row.external_id,
        prompt=_messages(row.messages),
        responses=tuple(texts[number] for number in order),
        revision=row.revision,
        status=row.state,
        answer=answer,
        draft=row.draft or answer,
        comment=row.comment or said,
    )


def history(connection: Connection, project_id: int, annotator_id: int, *, limit: int) -> list[HistoryEntry]:
    """This annotator's current decisions, newest first."""
    query = (
        select(ranking, assignment.c.seed, prompt.c.messages)
        .join(assignment, _IS_CURRENT)
        .join(prompt, prompt.c.id == ranking.c.prompt_id)
        .where(assignment.c.project_id == project_id, assignment.c.annotator_id == annotator_id)
        .where(assignment.c.state != "open")
        .order_by(ranking.c.id.desc())
        .limit(limit)
    )
    rows = connection.execute(query).all()
    ranks = _ranks(connection, [row.id for row in rows])
    return [_history_entry(row, ranks[row.id]) for row in rows]


def progress(connection: Connection, project_id: int, annotator_id: int) -> Progress:
    """Prompts of the project, and this annotator's decisions by state."""
    total = connection.execute(select(func.count()).where(prompt.c.project_id == project_id)).scalar_one()
    query = (
        select(assignment.c.state, func.count())
        .where(assignment.c.project_id == project_id, assignment.c.annotator_id == annotator_id)
        .group_by(assignment.c.state)
    )
    by_state: dict[str, int] = {state: number for state, number in connection.execute(query)}
    return Progress(total, by_state.get("ranked", 0), by_state.get("skipped", 0), by_state.get("flagged", 0))


def counts(connection: Connection, project_id: int) -> Counts:
    """The size of a project."""
    of_project = assignment.c.project_id == project_id
    ranked = and_(of_project, assignment.c.state == "ranked")

    def count(what: Any, where: Any) -> int:
        return connection.execute(select(func.count(what)).where(where)).scalar_one()

    responses = select(func.count(response.c.id)).join(prompt).where(prompt.c.project_id == project_id)
    return Counts(
        prompts=count(prompt.c.id, prompt.c.project_id == project_id),
        responses=connection.execute(responses).scalar_one(),
        ranked_prompts=count(distinct(assignment.c.prompt_id), ranked),
        rankings=count(assignment.c.prompt_id, ranked),
        skipped=count(assignment.c.prompt_id, and_(of_project, assignment.c.state == "skipped")),
        flagged=count(assignment.c.prompt_id, and_(of_project, assignment.c.state == "flagged")),
        annotators=count(distinct(assignment.c.annotator_id), and_(of_project, assignment.c.state != "open")),
    )


def records(connection: Connection, project_id: int) -> Iterator[PromptRecord]:
    """Every prompt with its responses and current decisions, a chunk of prompts in memory at a time."""
    after = 0
    query = select(prompt).where(prompt.c.project_id == project_id).order_by(prompt.c.id).limit(CHUNK_PROMPTS)
    while prompts := connection.execute(query.where(prompt.c.id > after)).all():
        after = prompts[-1].id
        ids = [row.id for row in prompts]
        responses = _grouped(
            connection, select(response).where(response.c.prompt_id.in_(ids)).order_by(response.c.number)
        )
        decided = _grouped(connection, _current_decisions(ids))
        ranks = _ranks(connection, [row.id for rows in decided.values() for row in rows])
        for row in prompts:
            yield _record(row, responses[row.id], decided[row.id], ranks)


def _current_decisions(prompt_ids: Sequence[int]) -> Any:
    return (
        select(ranking, annotator.c.name)
        .join(assignment, _IS_CURRENT)
        .join(annotator, annotator.c.id == ranking.c.annotator_id)
        .where(assignment.c.prompt_id.in_(prompt_ids), assignment.c.state != "open")
        .order_by(ranking.c.id)
    )


def _record(
    row: AnyRow, responses: list[AnyRow], decided: list[AnyRow], ranks: dict[int, list[AnyRow]]
) -> PromptRecord:
    return PromptRecord(
        id=row.external_id,
        prompt=_messages(row.messages),
        responses=tuple(Response(r.text, r.model, r.external_id) for r in responses),
        rankings=tuple(_annotator_ranking(d, ranks[d.id]) for d in decided if d.status == "ranked"),
        metadata=row.metadata,
        set_aside=tuple(
            SetAside(d.name, d.status, d.reason, d.seconds, d.comment, d.revision, d.created_at)
            for d in decided
            if d.status in ("skipped", "flagged")
        ),
    )


def _annotator_ranking(decision: AnyRow, rows: list[AnyRow]) -> AnnotatorRanking:
    seen = sorted((row for row in rows if row.shown is not None), key=lambda row: row.shown)
    return AnnotatorRanking(
        annotator=decision.name,
        ranking=ranking_from_ranks(_ranks_by_number(rows), decision.bar),
        order=tuple(row.number for row in seen),
        seconds=decision.seconds,
        comment=decision.comment,
        revision=decision.revision,
        created_at=decision.created_at,
    )


def _current_ranking(connection: Connection, mine: AnyRow, order: tuple[int, ...]) -> tuple[str, str]:
    """Notation in shown labels and comment of the ranking an assignment points to."""
    row = connection.execute(
        select(ranking).where(
            ranking.c.prompt_id == mine.prompt_id,
            ranking.c.annotator_id == mine.annotator_id,
            ranking.c.revision == mine.revision,
        )
    ).one()
    judged = _ranks_by_number(_ranks(connection, [row.id])[row.id])
    return format_ranking(ranking_from_ranks(judged, row.bar).relabel(shown_labels(order))), row.comment


def _history_entry(row: AnyRow, rows: list[AnyRow]) -> HistoryEntry:
    notation = ""
    if row.status == "ranked":
        labels = shown_labels(shown_order(row.seed, len(rows)))
        notation = format_ranking(ranking_from_ranks(_ranks_by_number(rows), row.bar).relabel(labels))
    text = row.messages[-1]["content"][:HISTORY_TEXT_CHARS]
    return HistoryEntry(row.prompt_id, row.revision, row.status, notation, text, row.created_at)


def _ranks_by_number(rows: list[AnyRow]) -> dict[int, int]:
    return {row.number: row.rank for row in rows if row.rank is not None}


def _ranks(connection: Connection, ranking_ids: Sequence[int]) -> dict[int, list[AnyRow]]:
    """Number, rank and place on screen of every response, by ranking."""
    found: dict[int, list[AnyRow]] = defaultdict(list)
    for start in range(0, len(ranking_ids), CHUNK_PROMPTS):
        query = (
            select(rank.c.ranking_id, rank.c.rank, rank.c.shown, response.c.number)
            .join(response, response.c.id == rank.c.response_id)
            .where(rank.c.ranking_id.in_(ranking_ids[start : start + CHUNK_PROMPTS]))
        )
        for row in connection.execute(query):
            found[row.ranking_id].append(row)
    return found


def _grouped(connection: Connection, query: Any) -> dict[int, list[AnyRow]]:
    """Rows by their prompt, order kept."""
    found: dict[int, list[AnyRow]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.prompt_id].append(row)
    return found


def _number_and_text(connection: Connection, prompt_id: int) -> Sequence[tuple[int, str]]:
    query = select(response.c.number, response.c.text).where(response.c.prompt_id == prompt_id)
    return [(row.number, row.text) for row in connection.execute(query)]


def _messages(stored: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in stored)
