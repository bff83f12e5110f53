"""The Data page's handlers, and the route that hands out exports."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from annotate.data_page import DataDesk
from annotate.exports import export_for
from annotate.pages import build_routes
from annotate.people import LocalPerson
from data.entities import Project
from data.store import Store
from tests.annotate.made_runs import request_of

LOCAL = request_of()
ROWS = [
    {"id": "a", "prompt": "One?", "responses": ["x", "y", "z"], "ranking": "A2>A1=A3", "annotator": "ann"},
    {"id": "b", "prompt": "Two?", "responses": ["x", "y"]},
]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def desk(store: Store, workspace: Path, local: LocalPerson) -> DataDesk:
    return DataDesk(store, workspace, local)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "uploaded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def ranked(store: Store, desk: DataDesk, project: Project, file: str) -> None:
    _, _, ticket = desk.check(project.id, file, "", LOCAL)
    desk.load(project.id, file, "", ticket, LOCAL)
    assert store.counts(project.id).rankings == 1


def test_the_page_opens_on_the_newest_project(desk: DataDesk, store: Store, project: Project) -> None:
    newest = store.create_project("newest")
    projects, summary, *_ = desk.open(LOCAL)
    assert projects["choices"] == [("newest", newest.id), ("demo", project.id)]
    assert projects["value"] == newest.id
    assert "no prompts yet" in summary


def test_without_any_project_the_page_says_what_to_do(desk: DataDesk) -> None:
    projects, summary, *_ = desk.open(LOCAL)
    assert projects["value"] is None
    assert "press Create" in summary


def test_counts_are_shown(desk: DataDesk, project: Project) -> None:
    summary, guidelines, _ = desk.choose(project.id, LOCAL)
    assert "<dd>3</dd><dt>prompts</dt>" in summary
    assert "<dd>9</dd><dt>responses</dt>" in summary
    assert guidelines == "Be **fair**."


def test_whoever_makes_a_project_is_its_admin(desk: DataDesk, store: Store, local: LocalPerson) -> None:
    name, projects, summary, *_ = desk.create("  <b>New</b> ", LOCAL)
    made = store.project("<b>New</b>")
    assert (name, projects["value"]) == ("", made.id)
    assert "&lt;b&gt;New&lt;/b&gt;" in summary
    assert "<b>" not in summary
    assert store.role(made.id, local.person.id) == "admin"


def test_a_taken_name_is_refused_in_a_sentence(desk: DataDesk, project: Project) -> None:
    _, _, summary, *_ = desk.create("demo", LOCAL)
    assert "exists already" in summary


def test_a_dry_run_reports_and_writes_nothing(desk: DataDesk, store: Store, project: Project, file: str) -> None:
    before = store.counts(project.id)
    report, button, ticket = desk.check(project.id, file, "my rows.jsonl", LOCAL)
    assert "Would add 2 prompts and 1 ranking to &#x27;demo&#x27;." in report
    assert "my rows.jsonl (native)" in report
    assert ">2 responses<" in report
    assert ">3 responses<" in report
    assert button["visible"]
    assert ticket
    assert store.counts(project.id) == before


def test_a_bad_file_gets_one_sentence_with_its_own_name_and_line(
    desk: DataDesk, project: Project, tmp_path: Path
) -> None:
    path = tmp_path / "cleaned-name.jsonl"
    path.write_text('{"prompt": "q", "responses": ["a", "b"]}\n{"prompt": "q", "responses": ["a"]}\n')
    report, button, ticket = desk.check(project.id, str(path), "<i>mine</i>.jsonl", LOCAL)
    assert "&lt;i&gt;mine&lt;/i&gt;.jsonl:2: 1 response; a ranking needs at least 2." in report
    assert "cleaned-name" not in report
    assert not button["visible"]
    assert not ticket


def test_import_adds_what_the_dry_run_announced(desk: DataDesk, store: Store, project: Project, file: str) -> None:
    _, _, ticket = desk.check(project.id, file, "", LOCAL)
    report, button, ticket, upload, summary = desk.load(project.id, file, "", ticket, LOCAL)
    assert "Added 2 prompts and 1 ranking" in report
    assert not button["visible"]
    assert (ticket, upload) == ("", None)
    assert "<dd>5</dd><dt>prompts</dt>" in summary
    assert store.counts(project.id).prompts == 5


def test_a_file_that_is_there_already_offers_no_import(
    desk: DataDesk, store: Store, project: Project, file: str
) -> None:
    ranked(store, desk, project, file)
    report, button, _ = desk.check(project.id, file, "", LOCAL)
    assert "Nothing to add" in report
    assert not button["visible"]


@pytest.mark.parametrize("change", ["file", "project", "no ticket", "no file"])
def test_only_what_was_checked_is_imported(
    desk: DataDesk, store: Store, project: Project, file: str, change: str
) -> None:
    other = store.create_project("other")
    _, _, ticket = desk.check(project.id, file, "", LOCAL)
    if change == "file":
        Path(file).write_text('{"prompt": "another", "responses": ["a", "b"]}\n')
    target = other.id if change == "project" else project.id
    sent = None if change == "no file" else file
    report, *_ = desk.load(target, sent, "", "" if change == "no ticket" else ticket, LOCAL)
    assert "changed since the check" in report
    assert (store.counts(project.id).prompts, store.counts(other.id).prompts) == (3, 0)


@pytest.mark.parametrize("sent", [None, 99, "1", [1], {}])
def test_a_project_that_is_none_is_answered_in_a_sentence(desk: DataDesk, project: Project, sent: object) -> None:
    assert 'role="alert"' in desk.choose(sent, LOCAL)[0]


def test_guidelines_are_saved_and_previewed_as_safe_html(desk: DataDesk, store: Store, project: Project) -> None:
    text = "**Right** first <script>alert(1)</script>"
    assert "Saved." in desk.save_guidelines(project.id, text, LOCAL)
    assert store.project("demo").guidelines == text
    preview = desk.preview(text)
    assert "<strong>Right</strong>" in preview
    assert "<script" not in preview


def test_an_export_says_what_it_holds_and_what_not(
    desk: DataDesk, store: Store, project: Project, file: str, workspace: Path
) -> None:
    ranked(store, desk, project, file)
    result, exports = desk.export(project.id, "trl", 0, LOCAL)
    assert "Exported 2 pairs of 1 ranking." in result
    assert "1 pair tied by people" in result
    assert 'href="/api/export/demo-1.zip"' in exports
    rows = (workspace / "exports/demo-1/trl/train.jsonl").read_text().splitlines()
    assert len(rows) == 2


def test_each_export_gets_a_folder_of_its_own(desk: DataDesk, project: Project, workspace: Path) -> None:
    for _ in range(3):
        desk.export(project.id, "trl", 10, LOCAL)
    assert sorted(p.name for p in (workspace / "exports").iterdir()) == ["demo-1", "demo-2", "demo-3"]


@pytest.mark.parametrize(("formats", "percent"), [("pickle", 10), ("trl", 99), ("trl", -1)])
def test_a_refused_export_leaves_no_folder(
    desk: DataDesk, project: Project, workspace: Path, formats: str, percent: float
) -> None:
    result, _ = desk.export(project.id, formats, percent, LOCAL)
    assert 'role="alert"' in result
    assert list((workspace / "exports").glob("*")) == []


def test_a_project_name_cannot_leave_the_exports_folder(store: Store, workspace: Path) -> None:
    project = store.create_project("../../苹果 /etc")
    made = export_for(store, project, workspace=workspace, formats=["trl"], eval_fraction=0)
    assert made.path == workspace / "exports" / "苹果-etc-1"


def test_an_annotator_may_do_nothing_here(
    store: Store, workspace: Path, people: Any, project: Project, file: str
) -> None:
    desk, ann = DataDesk(store, workspace, people), request_of("ann")
    answers = [
        desk.choose(project.id, ann)[0],
        desk.create("mine", ann)[2],
        desk.check(project.id, file, "", ann)[0],
        desk.load(project.id, file, "", "", ann)[0],
        desk.save_guidelines(project.id, "mine", ann),
        desk.export(project.id, "trl", 0, ann)[0],
    ]
    assert all('role="alert"' in answer for answer in answers)
    assert [p.guidelines for p in store.projects()] == ["Be **fair**."]
    assert not (workspace / "exports").exists()


@pytest.fixture
def exported(store: Store, project: Project, workspace: Path) -> Path:
    return export_for(store, project, workspace=workspace, formats=["trl"], eval_fraction=0.1).path


def test_an_export_is_fetched_as_a_zip_of_its_folder(client: TestClient, exported: Path) -> None:
    answer = client.get("/api/export/demo-1.zip")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="demo-1.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    there = {f"demo-1/{p.relative_to(exported)}": p.read_bytes() for p in exported.rglob("*") if p.is_file()}
    assert found == there


@pytest.mark.parametrize("name", ["demo-2", "..", "%2e%2e", "..%2f..%2fexports%2fdemo-1", "."])
def test_nothing_else_is_fetched(client: TestClient, exported: Path, name: str) -> None:
    assert client.get(f"/api/export/{name}.zip").status_code == 404


@pytest.mark.parametrize(("name", "status"), [("root", 200), ("ann", 403), ("guest", 403), ("nobody", 401)])
def test_an_export_is_for_admins(
    store: Store, exported: Path, people: Any, workspace: Path, name: str, status: int
) -> None:
    client = TestClient(build_routes(store, workspace, people), base_url="http://127.0.0.1:7860")
    assert client.get("/api/export/demo-1.zip", headers={"X-Test-Person": name}).status_code == status
