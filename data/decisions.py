"""Store one annotator's decision on one prompt: ranked, skipped, flagged or withdrawn.

Functions here run inside the caller's transaction and never commit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from data.entities import Receipt, Submission
from data.errors import BadInput, Conflict, NotFound
from data.notation import Ranking, format_ranking, parse_ranking
from data.records import MAX_RESPONSES, check_text
from data.schema import AnyRow, assignment, rank, ranking, response
from data.shown_order import shown_labels, shown_order

MAX_COMMENT_CHARS = 10_000
MAX_SECONDS = 30 * 24 * 3600


def check_submission(submission: Submission) -> None:
    """The rules that need no database. Raises BadInput naming the field."""
    check_key(submission.key)
    if submission.status not in ("ranked", "skipped", "flagged"):
        raise BadInput(f"status: '{submission.status}' is not ranked, skipped or flagged. Reload the page.")
    if submission.status != "ranked" and submission.ranking:
        raise BadInput(f"ranking: a {submission.status} prompt carries no ranking. Clear it, or submit it as ranked.")
    if submission.status == "flagged" and not submission.reason.strip():
        raise BadInput("reason: a flag needs a reason. Say what is wrong with the prompt or its responses.")
    check_text(submission.comment, "the text", where="comment", limit=MAX_COMMENT_CHARS)
    check_text(submission.reason, "the text", where="reason", limit=MAX_COMMENT_CHARS)
    seconds = submission.seconds
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise BadInput(f"seconds: {seconds} is no time spent on a prompt. Send 0 to {MAX_SECONDS}, or leave it out.")


def check_key(key: str) -> None:
    """A client key: 8 to 64 letters, digits, '-' or '_'. Raises BadInput."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{8,64}", key):
        raise BadInput("key: a client key is 8 to 64 letters, digits, '-' or '_'. Reload the page.")


def replay(connection: Connection, annotator_id: int, submission: Submission) -> Receipt | None:
    """The stored receipt of a request that is repeated, or None for a new one."""
    row = _by_key(connection, submission.key)
    if row is None:
        return None
    stored = _shown_notation(connection, row)
    sent = format_ranking(parse_ranking(submission.ranking, MAX_RESPONSES)) if submission.ranking else ""
    if (row.annotator_id, row.prompt_id, row.status, stored, row.comment, row.reason) != (
        *(annotator_id, submission.prompt_id, submission.status, sent),
        *(submission.comment, submission.reason.strip()),
    ):
        raise Conflict("key: this client key was used for another decision. Reload the page and submit again.")
    return Receipt(row.id, row.prompt_id, row.revision, row.status, stored, replayed=True)


def store(connection: Connection, annotator_id: int, submission: Submission, *, at: datetime) -> Receipt:
    """Append the decision as the next revision and close the task."""
    mine = _assignment(connection, submission.prompt_id, annotator_id)
    if mine.revision != submission.revision:
        raise Conflict(
            f"this prompt is already {mine.state} here (revision {mine.revision}, the page showed "
            f"{submission.revision}), perhaps in another tab. Look at it and submit again."
        )
    order = _order(connection, mine)
    judged = _judgement(submission, responses=len(order))
    ranking_id = append(
        connection,
        values={
            "prompt_id": mine.prompt_id,
            "annotator_id": annotator_id,
            "revision": mine.revision + 1,
            "status": submission.status,
            "seconds": submission.seconds,
            "comment": submission.comment,
            "reason": submission.reason.strip(),
            "source": "page",
            "client_key": submission.key,
            "created_at": at,
        },
        judged=judged.relabel(order) if judged else None,
        order=order,
    )
    closed = {"state": submission.status, "revision": mine.revision + 1, "draft": "", "comment": ""}
    _set(connection, mine, closed)
    notation = format_ranking(judged) if judged else ""
    return Receipt(ranking_id, mine.prompt_id, mine.revision + 1, submission.status, notation, replayed=False)


def append(connection: Connection, *, values: dict[str, Any], judged: Ranking | None, order: tuple[int, ...]) -> int:
    """Insert one revision and, for a ranking (in file-order labels), the rank of every response."""
    row = {**values, "bar": judged.bar if judged else None}
    ranking_id: int = connection.execute(insert(ranking).values(row).returning(ranking.c.id)).scalar_one()
    if judged:
        query = select(response.c.id, response.c.number, response.c.prompt_id)
        responses = connection.execute(query.where(response.c.prompt_id == values["prompt_id"])).all()
        connection.execute(insert(rank), rank_rows(ranking_id, responses, judged=judged, order=order))
    return ranking_id


def rank_rows(
    ranking_id: int, responses: Sequence[AnyRow], *, judged: Ranking, order: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One row per response: its place on screen (`order` empty = unknown) and its rank (None = unranked)."""
    ranks = judged.ranks
    return [
        {
            "ranking_id": ranking_id,
            "prompt_id": row.prompt_id,
            "response_id": row.id,
            "shown": order.index(row.number) + 1 if order else None,
            "rank": ranks.get(row.number),
        }
        for row in responses
    ]


def undone_by_key(connection: Connection, annotator_id: int, key: str) -> int | None:
    """The prompt that an earlier undo with this key reopened."""
    row = _by_key(connection, key)
    if row is None:
        return None
    if (row.annotator_id, row.source) != (annotator_id, "undo"):
        raise Conflict("key: this client key was used for another decision. Reload the page and try again.")
    return int(row.prompt_id)


def undo_latest(connection: Connection, project_id: int, annotator_id: int, *, key: str, at: datetime) -> int | None:
    """Take back the newest decision made in the page.

    A first decision is withdrawn and becomes the draft of the reopened task. A changed one gives way to the decision
    before it, which counts again as a revision of its own.
    """
    latest = _latest_in_page(connection, project_id, annotator_id)
    if latest is None:
        return None
    mine = _assignment(connection, latest.prompt_id, annotator_id)
    before = _revision(connection, mine, latest.revision - 1)
    stands = before is not None and before.status != "withdrawn"
    kept = {name: getattr(before, name) for name in ("status", "seconds", "comment", "reason")} if stands else {}
    values = {
        "status": "withdrawn",
        **kept,
        "prompt_id": latest.prompt_id,
        "annotator_id": annotator_id,
        "revision": mine.revision + 1,
        "source": "undo",
        "client_key": key,
        "created_at": at,
    }
    judged = stored_ranking(connection, before) if before is not None and before.status == "ranked" else None
    append(connection, values=values, judged=judged, order=_order(connection, mine) if judged else ())
    state = {"state": values["status"], "draft": "", "comment": ""}
    if not stands:
        state = {"state": "open", "draft": _shown_notation(connection, latest), "comment": latest.comment}
    _set(connection, mine, {**state, "revision": mine.revision + 1})
    return int(latest.prompt_id)


def _latest_in_page(connection: Connection, project_id: int, annotator_id: int) -> AnyRow | None:
    """The annotator's newest decision that counts and was made in the page."""
    is_current = (
        (assignment.c.prompt_id == ranking.c.prompt_id)
        & (assignment.c.annotator_id == ranking.c.annotator_id)
        & (assignment.c.revision == ranking.c.revision)
    )
    query = (
        select(ranking)
        .join(assignment, is_current)
        .where(assignment.c.project_id == project_id, assignment.c.annotator_id == annotator_id)
        .where(ranking.c.source == "page")
        .order_by(ranking.c.id.desc())
        .limit(1)
    )
    return connection.execute(query).one_or_none()


def _revision(connection: Connection, mine: AnyRow, revision: int) -> AnyRow | None:
    query = select(ranking).where(
        ranking.c.prompt_id == mine.prompt_id,
        ranking.c.annotator_id == mine.annotator_id,
        ranking.c.revision == revision,
    )
    return connection.execute(query).one_or_none()


def stored_ranking(connection: Connection, row: AnyRow) -> Ranking:
    """The judgement of one ranking row, in file-order labels."""
    query = (
        select(response.c.number, rank.c.rank)
        .join(response, response.c.id == rank.c.response_id)
        .where(rank.c.ranking_id == row.id, rank.c.rank.is_not(None))
    )
    return ranking_from_ranks({number: place for number, place in connection.execute(query)}, row.bar)


def ranking_from_ranks(ranks: dict[int, int], bar: int | None) -> Ranking:
    """Ranks by response number, back to tiers."""
    tiers = (tuple(sorted(n for n in ranks if ranks[n] == place)) for place in sorted(set(ranks.values())))
    return Ranking(tuple(tiers), bar)


def _judgement(submission: Submission, *, responses: int) -> Ranking | None:
    if submission.status != "ranked":
        return None
    judged = parse_ranking(submission.ranking, responses)
    if len(judged.ranks) == 1 and judged.bar is None:
        raise BadInput(
            f"ranking '{submission.ranking.strip()}': one response alone compares nothing. "
            "Rank another one, or set the bar '|' to say whether it is acceptable."
        )
    return judged


def _shown_notation(connection: Connection, row: AnyRow) -> str:
    if row.status != "ranked":
        return ""
    order = _order(connection, _assignment(connection, row.prompt_id, row.annotator_id))
    return format_ranking(stored_ranking(connection, row).relabel(shown_labels(order)))


def _order(connection: Connection, mine: AnyRow) -> tuple[int, ...]:
    numbers = connection.execute(select(response.c.id).where(response.c.prompt_id == mine.prompt_id)).all()
    return shown_order(mine.seed, len(numbers))


def _assignment(connection: Connection, prompt_id: int, annotator_id: int) -> AnyRow:
    query = select(assignment).where(assignment.c.prompt_id == prompt_id, assignment.c.annotator_id == annotator_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"prompt {prompt_id} was never shown to you. Reload the page.")
    return row


def _set(connection: Connection, mine: AnyRow, values: dict[str, Any]) -> None:
    key = (assignment.c.prompt_id == mine.prompt_id) & (assignment.c.annotator_id == mine.annotator_id)
    connection.execute(update(assignment).where(key).values(values))


def _by_key(connection: Connection, key: str) -> AnyRow | None:
    return connection.execute(select(ranking).where(ranking.c.client_key == key)).one_or_none()
