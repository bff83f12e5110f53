"""Imports: reports, all or nothing, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from data.errors import BadInput, NotFound, UserError
from data.importing import import_file, import_files, inspect_file
from data.schema import metadata
from data.store import Store
from tests.data.conftest import Desk

ROW = {"id": "a", "prompt": "Why?", "responses": ["Because.", "No idea.", "Ask."]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def dump(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with store._read() as connection:
        return {t.name: [tuple(r) for r in connection.execute(select(t))] for t in metadata.sorted_tables}


def ranked(annotator: str, ranking: str, **row: Any) -> dict[str, Any]:
    return {**ROW, "rankings": [{"annotator": annotator, "ranking": ranking}], **row}


def test_a_dry_run_tells_what_the_import_then_does(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ranked("lin", "A1>A2=A3"), {**ROW, "id": "b"}, ranked("kim", "A3", id="c"))
    before = dump(store)
    rehearsed = import_file(store, "demo", path, dry_run=True)
    assert dump(store) == before
    done = import_file(store, "demo", path)
    assert replace(rehearsed, dry_run=False) == done
    assert (done.new_prompts, done.new_rankings, done.responses) == (3, 2, 9)
    assert (done.rankings_with_ties, done.rankings_partial, done.without_ranking) == (1, 1, 1)
    assert done.responses_per_prompt == {3: 3}
    assert done.annotators == {"lin": 1, "kim": 1}
    assert store.counts(store.project("demo").id).prompts == 3


def test_importing_a_file_twice_adds_nothing_and_says_so(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ranked("lin", "A1>A2"), {**ROW, "id": "b"})
    import_file(store, "demo", path)
    before = list(store.records(store.project("demo").id))
    again = import_file(store, "demo", path)
    assert list(store.records(store.project("demo").id)) == before
    assert (again.new_prompts, again.prompts_already_there) == (0, 2)
    assert (again.new_rankings, again.rankings_already_there) == (0, 1)
    assert str(again).startswith("Nothing to add to 'demo'")
    assert import_file(store, "demo", path, dry_run=True) == replace(again, dry_run=True)


def test_a_later_file_adds_other_peoples_rankings(store: Store, tmp_path: Path) -> None:
    import_file(store, "demo", write(tmp_path / "lin.jsonl", ranked("lin", "A1>A2")))
    report = import_file(store, "demo", write(tmp_path / "kim.jsonl", ranked("kim", "A2>A1")))
    assert (report.new_prompts, report.new_rankings) == (0, 1)
    [record] = store.records(store.project("demo").id)
    assert [r.annotator for r in record.rankings] == ["lin", "kim"]


def test_several_files_are_one_import(store: Store, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("prompt,response_1,response_2\nq,x,y\n")
    report = import_files(store, "demo", [write(tmp_path / "rows.jsonl", ROW), table])
    assert (report.formats, report.new_prompts) == (("native", "csv"), 2)


def test_a_bad_row_in_the_last_file_leaves_the_store_as_it_was(store: Store, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", ROW), write(tmp_path / "bad.jsonl", {**ROW, "id": "b", "responses": []})
    before = dump(store)
    with pytest.raises(BadInput, match=r"bad.jsonl:1: 0 responses"):
        import_files(store, "demo", [good, bad])
    assert dump(store) == before


def test_a_store_that_fails_halfway_keeps_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_project("demo")
    path = write(tmp_path / "rows.jsonl", *({**ROW, "id": f"p{i}"} for i in range(1200)))
    before = dump(store)
    real = store.add_prompts

    def cut_short(project_id: int, records: Iterable[Any]) -> Any:
        def broken() -> Iterable[Any]:
            for number, record in enumerate(records):
                if number == 1100:
                    raise RuntimeError("power cut")
                yield record

        return real(project_id, broken())

    monkeypatch.setattr(store, "add_prompts", cut_short)
    with pytest.raises(RuntimeError, match="power cut"):
        import_file(store, "demo", path)
    assert dump(store) == before


def test_a_repeated_id_is_refused_with_both_places(store: Store, tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", ROW, ROW)
    with pytest.raises(BadInput, match=r"same.jsonl:2: id 'a' also stands at .*same.jsonl:1; an id stands once"):
        import_file(store, "demo", same)
    other = write(tmp_path / "other.jsonl", ROW, {**ROW, "id": "b"}, {**ROW, "prompt": "Else?"})
    with pytest.raises(BadInput, match=r"other.jsonl:3: id 'a' also stands at .*other.jsonl:1, for another prompt"):
        import_file(store, "demo", other)
    with pytest.raises(BadInput, match=r"same.jsonl:1: id 'a' also stands at .*other2.jsonl:1"):
        import_files(store, "demo", [write(tmp_path / "other2.jsonl", ROW), same])
    assert store.projects() == []


def test_one_person_with_two_rankings_of_a_prompt_is_refused(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ranked("lin", "A1>A2"), ranked("lin", "A2>A1"))
    with pytest.raises(BadInput, match=r"rows.jsonl:2: 'lin' has 'A2>A1' here and 'A1>A2' at .*rows.jsonl:1"):
        import_file(store, "demo", path)
    both = {**ranked("lin", "A1>A2"), "set_aside": [{"annotator": "lin", "status": "skipped"}]}
    with pytest.raises(BadInput, match=r"both.jsonl:1: .*lin"):
        import_file(store, "demo", write(tmp_path / "both.jsonl", both))


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_contradicts_the_project_is_refused_with_the_line(store: Store, tmp_path: Path, dry_run: bool) -> None:
    import_file(store, "demo", write(tmp_path / "first.jsonl", ranked("lin", "A1>A2")))
    before = dump(store)
    content = write(tmp_path / "content.jsonl", {**ROW, "id": "new"}, {**ROW, "prompt": "Else?"})
    with pytest.raises(BadInput, match=r"content.jsonl:2: id 'a' stands for another prompt"):
        import_file(store, "demo", content, dry_run=dry_run)
    judged = write(tmp_path / "judged.jsonl", {**ROW, "id": "new"}, ranked("lin", "A2>A1"))
    with pytest.raises(BadInput, match=r"judged.jsonl:2: 'lin' has 'A2>A1' here and 'A1>A2' in project 'demo'"):
        import_file(store, "demo", judged, dry_run=dry_run)
    assert dump(store) == before


def test_the_same_file_may_fill_two_projects(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ranked("lin", "A1>A2"))
    assert [import_file(store, name, path).new_prompts for name in ("one", "two")] == [1, 1]


def test_a_missing_project_is_made_only_when_asked_and_only_for_good_files(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW)
    with pytest.raises(NotFound, match="demo"):
        import_file(store, "demo", path, create=False)
    import_file(store, "demo", path, dry_run=True)
    assert store.projects() == []


def test_work_on_the_ranking_page_does_not_make_an_import_differ(desk: Desk, tmp_path: Path) -> None:
    rows = [{"id": f"p{i}", "prompt": f"Question {i}?", "responses": ["one", "two", "three"]} for i in range(1, 6)]
    desk.rank("A1>A2>A3")
    report = import_file(desk.store, "demo", write(tmp_path / "rows.jsonl", *rows))
    assert (report.new_prompts, report.prompts_already_there, report.new_rankings) == (0, 5, 0)
    assert sum(len(record.rankings) for record in desk.records()) == 1


def test_the_report_reads_well_and_is_json(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ranked("lin", "A1>A2=A3"), {**ROW, "id": "b", "responses": ["x", "y"]})
    report = inspect_file(path, name="rows.jsonl")
    assert str(report).splitlines() == [
        "rows.jsonl: 2 prompts.",
        "  files       rows.jsonl (native)",
        "  prompts     2",
        "  responses   5 (prompts by number of responses: 1 with 2, 1 with 3)",
        "  rankings    1, 1 with ties",
        "  to rank     1 prompt without a ranking",
        "  annotators  lin (1)",
    ]
    assert json.loads(json.dumps(report.as_json()))["responses_per_prompt"] == {"2": 1, "3": 1}


def test_the_shipped_samples_import_without_a_ranking(store: Store) -> None:
    path = Path(__file__).resolve().parents[2] / "data" / "samples" / "handwritten.jsonl"
    report = import_file(store, "samples", path)
    assert (report.new_prompts, report.rankings) == (12, 0)
    records = list(store.records(store.project("samples").id))
    assert {len(record.responses) for record in records} == {3, 4}
    assert sorted(record.metadata["lang"] for record in records) == ["en"] * 6 + ["zh"] * 6
    assert "苹果是什么？" in {record.prompt[-1].content for record in records}


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the rows, all in one file: the peak of what Python holds stays within a megabyte."""
    import tracemalloc

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                file.write(json.dumps({**ROW, "id": f"p{number}", "prompt": f"{number}?" * 20}) + "\n")
        tracemalloc.start()
        inspect_file(path)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    assert peak(2000) - peak(200) < 2**20


def test_user_errors_are_what_a_bad_path_raises(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl", tmp_path / ("x" * 400), Path("/dev/null"), Path("a\0b")):
        with pytest.raises(UserError):
            import_file(store, "demo", path)
