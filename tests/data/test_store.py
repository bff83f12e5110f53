"""The store's sentences, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from data.entities import Progress, Submission
from data.errors import BadInput, Conflict, NotFound
from data.notation import parse_ranking
from data.records import AnnotatorRanking, Message, PromptRecord, Response, SetAside, read_record
from data.schema import audit, rank, ranking
from data.shown_order import shown_labels, shown_order
from data.store import Store
from tests.data.conftest import Desk

KEY = "attempt-0001"
FIRST_PROMPT = {"id": "p1", "prompt": "Question 1?", "responses": ["one", "two", "three"]}


def revisions(store: Store) -> list[tuple[int, str]]:
    """Every stored revision, oldest first: nothing may ever leave this list."""
    with store._read() as connection:
        query = select(ranking.c.revision, ranking.c.status).order_by(ranking.c.id)
        return [(row.revision, row.status) for row in connection.execute(query)]


def test_a_submitted_ranking_is_read_back_in_file_order_with_the_shown_order(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    submission = Submission(task.prompt_id, 0, KEY, "ranked", "A2>A1|A3", seconds=4.5, comment="clear")
    receipt = desk.store.submit(desk.annotator.id, submission)

    stored = desk.records()[0].rankings[0]
    texts = ["one", "two", "three"]
    assert [texts[n - 1] for n in stored.order] == list(task.responses)
    best = stored.ranking.tiers[0][0]
    assert texts[best - 1] == task.responses[1]
    assert stored.ranking.bar == 2
    assert (stored.annotator, stored.seconds, stored.comment, stored.revision) == ("lin", 4.5, "clear", 1)
    assert (receipt.ranking, receipt.revision, receipt.replayed) == ("A2>A1|A3", 1, False)


def test_the_shown_order_is_stable_and_differs_between_annotators(desk: Desk) -> None:
    orders = set()
    for name in "abcdefgh":
        person = desk.store.ensure_annotator(name)
        first = desk.store.next_task(desk.project.id, person.id)
        assert first == desk.store.next_task(desk.project.id, person.id)
        assert first is not None
        orders.add(first.responses)
    assert len(orders) > 1


def test_a_seed_means_the_same_order_for_ever() -> None:
    assert shown_order(20261124, 5) == (5, 1, 2, 3, 4)
    for seed in range(50):
        order = shown_order(seed, 5)
        assert [order[label - 1] for label in shown_labels(order)] == [1, 2, 3, 4, 5]


def test_every_place_on_screen_is_equally_likely() -> None:
    seen = Counter(shown_order(seed, 3) for seed in range(6000))
    assert len(seen) == 6
    assert all(850 < count < 1150 for count in seen.values())


def test_tasks_come_in_order_and_end(desk: Desk) -> None:
    for _ in range(5):
        desk.rank("A1>A2>A3")
    assert desk.store.next_task(desk.project.id, desk.annotator.id) is None
    assert desk.store.progress(desk.project.id, desk.annotator.id) == Progress(5, ranked=5, skipped=0, flagged=0)


def test_a_repeated_key_is_answered_with_the_stored_receipt(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    submission = Submission(task.prompt_id, 0, KEY, "ranked", "A3>A1")
    first = desk.store.submit(desk.annotator.id, submission)
    again = desk.store.submit(desk.annotator.id, submission)
    assert again.replayed
    assert (again.ranking_id, again.ranking, again.revision) == (first.ranking_id, first.ranking, first.revision)
    assert revisions(desk.store) == [(1, "ranked")]


def test_five_clicks_at_once_store_one_row_and_get_equal_answers(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    submission = Submission(task.prompt_id, 0, KEY, "ranked", "A3>A1")
    answers: list[int] = []
    clicks = [
        threading.Thread(target=lambda: answers.append(desk.store.submit(desk.annotator.id, submission).ranking_id))
        for _ in range(5)
    ]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(answers) == 5
    assert len(set(answers)) == 1
    assert revisions(desk.store) == [(1, "ranked")]


def test_a_key_serves_one_decision_only(desk: Desk) -> None:
    desk.rank("A1>A2", key=KEY)
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    with pytest.raises(Conflict, match="used for another decision"):
        desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, KEY, "ranked", "A1>A2"))
    with pytest.raises(Conflict, match="used for another decision"):
        desk.store.undo(desk.project.id, desk.annotator.id, key=KEY)


def test_another_ranking_under_a_used_key_is_never_acknowledged(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, KEY, "ranked", "A1>A2>A3"))
    assert desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, KEY, "ranked", "1 > 2 > 3")).replayed
    with pytest.raises(Conflict, match="used for another decision"):
        desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, KEY, "ranked", "A3>A2>A1"))


def test_the_second_of_two_tabs_is_told_and_nothing_is_lost(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, "first-tab", "ranked", "A1>A2"))
    with pytest.raises(Conflict, match="already ranked here"):
        desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, "second-tab", "ranked", "A2>A1"))
    edit = desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 1, "second-try", "ranked", "A2>A1"))
    assert edit.revision == 2
    assert revisions(desk.store) == [(1, "ranked"), (2, "ranked")]
    assert len(desk.records()[0].rankings) == 1


def test_undo_withdraws_by_a_new_revision_and_reopens_with_the_draft(desk: Desk) -> None:
    desk.rank("A3>A2|A1")
    before = desk.store.next_task(desk.project.id, desk.annotator.id)
    reopened = desk.store.undo(desk.project.id, desk.annotator.id, key="undo-0001")
    assert reopened is not None
    assert (reopened.external_id, reopened.status, reopened.draft, reopened.revision) == ("p1", "open", "A3>A2|A1", 2)
    assert desk.records()[0].rankings == ()
    assert revisions(desk.store) == [(1, "ranked"), (2, "withdrawn")]
    assert desk.store.next_task(desk.project.id, desk.annotator.id) == reopened

    desk.rank("A1>A2>A3")
    assert desk.store.next_task(desk.project.id, desk.annotator.id) == before
    assert revisions(desk.store) == [(1, "ranked"), (2, "withdrawn"), (3, "ranked")]


def test_undo_walks_back_one_decision_a_key_and_stops_at_the_first(desk: Desk) -> None:
    desk.rank("A1>A2")
    desk.rank("A2>A1")
    undo = lambda key: desk.store.undo(desk.project.id, desk.annotator.id, key=key)  # noqa: E731
    second = undo("undo-0001")
    assert undo("undo-0001") == second
    first = undo("undo-0002")
    assert (second and second.external_id, first and first.external_id) == ("p2", "p1")
    assert undo("undo-0003") is None


def test_undo_of_a_changed_ranking_brings_the_earlier_one_back(desk: Desk) -> None:
    desk.rank("A1>A2>A3")
    before = desk.records()[0].rankings[0]
    entry = desk.store.history(desk.project.id, desk.annotator.id)[0]
    desk.store.submit(desk.annotator.id, Submission(entry.prompt_id, 1, "edit-0001", "ranked", "A3>A2>A1"))
    reopened = desk.store.undo(desk.project.id, desk.annotator.id, key="undo-0001")
    assert reopened is not None
    assert (reopened.status, reopened.answer, reopened.draft, reopened.revision) == ("ranked",) + ("A1>A2>A3",) * 2 + (
        3,
    )
    after = desk.records()[0].rankings[0]
    assert (after.ranking, after.order, after.revision) == (before.ranking, before.order, 3)
    assert desk.store.undo(desk.project.id, desk.annotator.id, key="undo-0002") is None
    assert revisions(desk.store) == [(1, "ranked"), (2, "ranked"), (3, "ranked")]


def test_undo_of_a_changed_import_brings_the_import_back(desk: Desk) -> None:
    desk.add({"id": "seen", "prompt": "?", "responses": ["x", "y"], "ranking": "A2>A1", "annotator": "lin"})
    entry = desk.store.history(desk.project.id, desk.annotator.id)[0]
    desk.store.submit(desk.annotator.id, Submission(entry.prompt_id, 1, "edit-0001", "ranked", "A1=A2"))
    assert desk.store.undo(desk.project.id, desk.annotator.id, key="undo-0001") is not None
    assert str(desk.records()[-1].rankings[0].ranking) == "A2>A1"


def test_an_import_decides_what_is_merely_open_and_keeps_the_order_on_the_screen(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    desk.add(FIRST_PROMPT | {"ranking": "A3>A1", "annotator": "lin"})
    assert str(desk.records()[0].rankings[0].ranking) == "A3>A1"
    with pytest.raises(Conflict, match="already ranked here"):
        desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, KEY, "ranked", "A1>A2"))
    assert desk.store.task(desk.project.id, task.prompt_id, desk.annotator.id).responses == task.responses


def test_an_import_refuses_to_turn_a_ranking_into_a_flag(desk: Desk) -> None:
    desk.rank("A1>A2")
    with pytest.raises(BadInput, match="never overwrites a judgement"):
        desk.add(FIRST_PROMPT | {"set_aside": [{"annotator": "lin", "status": "flagged", "reason": "x"}]})


def test_a_new_project_with_a_bad_prompt_is_not_made(desk: Desk) -> None:
    twice = [read_record(FIRST_PROMPT, where="test")] * 2
    with pytest.raises(BadInput, match="stands twice"):
        desk.store.create_project_with("late", twice)
    assert [p.name for p in desk.store.projects()] == ["demo"]


def test_undo_leaves_imported_rankings_alone(desk: Desk) -> None:
    desk.add({"id": "seen", "prompt": "?", "responses": ["x", "y"], "ranking": "A1>A2", "annotator": "lin"})
    assert desk.store.undo(desk.project.id, desk.annotator.id, key="undo-0001") is None


def test_skips_and_flags_are_decisions_with_a_reason(desk: Desk) -> None:
    for status, reason in (("skipped", ""), ("flagged", "holds a phone number")):
        task = desk.store.next_task(desk.project.id, desk.annotator.id)
        assert task is not None
        submission = Submission(task.prompt_id, 0, f"{status}-key", status, reason=reason)
        desk.store.submit(desk.annotator.id, submission)
    assert desk.store.progress(desk.project.id, desk.annotator.id) == Progress(5, ranked=0, skipped=1, flagged=1)
    aside = [(s.annotator, s.status, s.reason) for record in desk.records() for s in record.set_aside]
    assert aside == [("lin", "skipped", ""), ("lin", "flagged", "holds a phone number")]
    assert [entry.status for entry in desk.store.history(desk.project.id, desk.annotator.id)] == ["flagged", "skipped"]


def test_a_skipped_prompt_can_be_ranked_later_from_the_history(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 0, "skip-0001", "skipped"))
    again = desk.store.task(desk.project.id, task.prompt_id, desk.annotator.id)
    assert (again.status, again.revision, again.responses) == ("skipped", 1, task.responses)
    desk.store.submit(desk.annotator.id, Submission(task.prompt_id, 1, "rank-0001", "ranked", "A1>A2>A3"))
    assert desk.store.progress(desk.project.id, desk.annotator.id).skipped == 0


def test_a_reopened_ranking_shows_itself_as_the_draft(desk: Desk) -> None:
    desk.rank("A3=A1>A2")
    entry = desk.store.history(desk.project.id, desk.annotator.id)[0]
    again = desk.store.task(desk.project.id, entry.prompt_id, desk.annotator.id)
    assert (entry.ranking, again.draft, again.status) == ("A1=A3>A2", "A1=A3>A2", "ranked")


def test_a_draft_is_kept_until_the_submit(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    desk.store.save_draft(desk.annotator.id, task.prompt_id, draft="A2>", comment="thinking")
    kept = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert kept is not None
    assert (kept.draft, kept.comment) == ("A2>", "thinking")
    desk.rank("A2>A1")
    assert desk.store.task(desk.project.id, task.prompt_id, desk.annotator.id).draft == "A2>A1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranking": "A1>A9"}, "A9 does not exist"),
        ({"ranking": ""}, "the ranking is empty"),
        ({"ranking": "A1"}, "one response alone compares nothing"),
        ({"status": "great"}, "not ranked, skipped or flagged"),
        ({"status": "withdrawn", "ranking": ""}, "not ranked, skipped or flagged"),
        ({"status": "skipped"}, "carries no ranking"),
        ({"status": "flagged", "ranking": "", "reason": " "}, "a flag needs a reason"),
        ({"key": "short"}, "a client key is 8 to 64"),
        ({"seconds": -1.0}, "no time spent"),
        ({"seconds": float("nan")}, "no time spent"),
        ({"comment": "x" * 20_000}, "at most 10,000"),
        ({"comment": "\x00"}, "NUL character"),
        ({"comment": "\ud800"}, "surrogate pair"),
        ({"prompt_id": 999}, "was never shown to you"),
    ],
)
def test_a_submission_that_breaks_a_rule_changes_nothing(desk: Desk, change: dict[str, object], message: str) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    values = {"prompt_id": task.prompt_id, "revision": 0, "key": KEY, "status": "ranked", "ranking": "A1>A2"} | change
    with pytest.raises((BadInput, NotFound), match=message):
        desk.store.submit(desk.annotator.id, Submission(**values))  # type: ignore[arg-type]
    assert revisions(desk.store) == []
    assert desk.store.next_task(desk.project.id, desk.annotator.id) == task


def test_nobody_submits_what_another_person_opened(desk: Desk) -> None:
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    other = desk.store.ensure_annotator("wei")
    assert task is not None
    with pytest.raises(NotFound, match="never shown to you"):
        desk.store.submit(other.id, Submission(task.prompt_id, 0, KEY, "ranked", "A1>A2"))
    with pytest.raises(NotFound, match="never shown to you"):
        desk.store.save_draft(other.id, task.prompt_id, draft="A1", comment="")


def test_a_prompt_of_another_project_is_not_found(desk: Desk) -> None:
    other = desk.store.create_project("other")
    task = desk.store.next_task(desk.project.id, desk.annotator.id)
    assert task is not None
    with pytest.raises(NotFound, match="not in this project"):
        desk.store.task(other.id, task.prompt_id, desk.annotator.id)


def test_the_schema_refuses_a_rank_of_another_prompts_response(desk: Desk) -> None:
    desk.rank("A1>A2>A3")
    with desk.store._read() as connection:
        ranking_id, prompt_id = connection.execute(select(ranking.c.id, ranking.c.prompt_id)).one()
    foreign = {"ranking_id": ranking_id, "prompt_id": prompt_id, "response_id": 15, "rank": 1}
    with pytest.raises(IntegrityError), desk.store._write() as connection:
        connection.execute(rank.insert().values(foreign))


def test_reads_cannot_write(desk: Desk) -> None:
    with pytest.raises(Exception, match=r"readonly|read-only"), desk.store._read() as connection:
        connection.execute(audit.delete())


def test_every_change_is_in_the_audit_table(desk: Desk) -> None:
    desk.rank("A1>A2")
    desk.store.undo(desk.project.id, desk.annotator.id, key="undo-0001")
    desk.store.set_guidelines(desk.project.id, "Be fair.", by=desk.annotator.id)
    desk.store.grant(desk.project.id, desk.annotator.id, "admin")
    with desk.store._read() as connection:
        actions = connection.execute(select(audit.c.action).order_by(audit.c.id)).scalars().all()
    assert actions == [
        "project.create",
        "prompts.add",
        "ranking.ranked",
        "ranking.undone",
        "project.guidelines",
        "member.grant",
    ]


def test_roles_are_per_project(desk: Desk) -> None:
    assert desk.store.role(desk.project.id, desk.annotator.id) is None
    desk.store.grant(desk.project.id, desk.annotator.id, "annotator")
    desk.store.grant(desk.project.id, desk.annotator.id, "admin")
    assert desk.store.role(desk.project.id, desk.annotator.id) == "admin"
    with pytest.raises(BadInput, match="one of annotator, reviewer, admin"):
        desk.store.grant(desk.project.id, desk.annotator.id, "owner")


def test_projects_are_found_by_name_and_missing_ones_name_the_others(desk: Desk) -> None:
    assert desk.store.project("demo") == desk.project
    with pytest.raises(NotFound, match="The projects are: demo"):
        desk.store.project("dmeo")
    with pytest.raises(Conflict, match="exists already"):
        desk.store.create_project("demo")
    with pytest.raises(BadInput, match="empty or holds a control character"):
        desk.store.create_project(" \n")


def test_the_same_import_again_adds_nothing(desk: Desk) -> None:
    row = {"id": "r", "prompt": "?", "responses": ["x", "y"], "ranking": "A2>A1", "annotator": "wei"}
    desk.add(row)
    added = desk.store.add_prompts(desk.project.id, [read_record(row, where="test")])
    assert vars(added) == {"prompts": 0, "already_there": 1, "rankings": 0, "rankings_already_there": 1}


def test_a_known_prompt_takes_rankings_by_new_people(desk: Desk) -> None:
    desk.add(FIRST_PROMPT | {"ranking": "A3", "annotator": "wei"})
    assert [(r.annotator, str(r.ranking)) for r in desk.records()[0].rankings] == [("wei", "A3")]


def test_an_import_never_overwrites_a_judgement_and_leaves_the_store_as_it_was(desk: Desk) -> None:
    row = {"id": "r", "prompt": "?", "responses": ["x", "y"], "ranking": "A2>A1", "annotator": "wei"}
    desk.add(row)
    before = desk.records()
    with pytest.raises(BadInput, match="never overwrites a judgement"):
        desk.add({"id": "new", "prompt": "new?", "responses": ["x", "y"]}, row | {"ranking": "A1>A2"})
    with pytest.raises(BadInput, match="an id names one content"):
        desk.add({"id": "new", "prompt": "new?", "responses": ["x", "y"]}, row | {"responses": ["x", "z"]})
    with pytest.raises(BadInput, match="stands twice"):
        desk.add(*[{"id": "new", "prompt": "new?", "responses": ["x", "y"]}] * 2)
    assert desk.records() == before


def test_a_chunk_that_fails_late_takes_the_whole_import_with_it(desk: Desk) -> None:
    def rows():  # type: ignore[no-untyped-def]
        for i in range(1200):
            yield read_record({"id": f"n{i}", "prompt": "?", "responses": ["x", "y"]}, where="test")
        raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError):
        desk.store.add_prompts(desk.project.id, rows())
    assert desk.store.counts(desk.project.id).prompts == 5


def test_counts_tell_prompts_rankings_and_people(desk: Desk) -> None:
    desk.rank("A1>A2")
    desk.add(FIRST_PROMPT | {"ranking": "A3", "annotator": "wei"})
    counts = desk.store.counts(desk.project.id)
    assert (counts.prompts, counts.responses, counts.ranked_prompts) == (5, 15, 1)
    assert (counts.rankings, counts.annotators) == (2, 2)


def test_everything_is_there_after_a_restart(desk: Desk, open_store: Callable[[], Store]) -> None:
    desk.rank("A1>A2")
    before = desk.records()
    desk.store.close()
    again = open_store()
    assert list(again.records(desk.project.id)) == before


def test_a_snapshot_does_not_see_later_writes(desk: Desk) -> None:
    reader = desk.store.records(desk.project.id)
    first = next(reader)
    desk.rank("A1>A2")
    desk.add({"id": "late", "prompt": "?", "responses": ["x", "y"]})
    assert first.rankings == ()
    assert all(record.rankings == () and record.id != "late" for record in reader)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)


@given(
    texts=st.lists(TEXT, min_size=2, max_size=4),
    prompt=TEXT.filter(str.strip),
    comment=TEXT,
    metadata=st.dictionaries(TEXT, TEXT | st.integers(-(2**53), 2**53) | st.booleans() | st.none(), max_size=3),
    order=st.randoms(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_that_is_accepted_comes_back_as_it_was(desk: Desk, texts, prompt, comment, metadata, order) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(range(1, len(texts) + 1))
    order.shuffle(shuffled)
    record = PromptRecord(
        id=f"any-{desk.store.counts(desk.project.id).prompts}",
        prompt=(Message("system", comment), Message("user", prompt)),
        responses=tuple(Response(text, model="m") for text in texts),
        rankings=(
            AnnotatorRanking("wei", parse_ranking("A2|A1", 2), tuple(shuffled), 1.5, comment, 3, datetime.now(UTC)),
        ),
        set_aside=(SetAside("kim", "flagged", comment, 2.5, comment, 2, datetime.now(UTC)),),
        metadata=metadata,
    )
    desk.store.add_prompts(desk.project.id, [record])
    assert desk.records()[-1] == record


def test_ranks_are_rows(desk: Desk) -> None:
    desk.rank("A1>A2")
    with desk.store._read() as connection:
        assert connection.execute(select(func.count()).select_from(rank)).scalar() == 3
        assert sorted(row.rank or 0 for row in connection.execute(select(rank))) == [0, 1, 2]
