"""The choke points: whoever should not get in does not, by whatever way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from annotate.guard import MAX_API_BODY_BYTES, GuardedBlocks
from annotate.pages import PAGES, build_app
from annotate.people import LocalPerson
from data.records import read_record
from data.store import Store
from tests.annotate.named_people import NamedPeople

ADDRESS = "http://127.0.0.1:7860"
POSTS = ["/api/submit", "/api/undo", "/api/draft"]
GETS = ["/api/projects", "/api/task?project=1", "/api/history?project=1"]
CLOSED = [
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/gradio_api/deep_link",
    "/gradio_api/runs",
    "/gradio_api/run-history/records",
    "/gradio_api/component_server",
    "/gradio_api/vibe-code",
    "/gradio_api/proxy=http://evil.example/",
    "/gradio_api/user",
    "/gradio_api/token",
    "/monitoring",
    "/docs",
    "/openapi.json",
    "/login",
    "/anything",
    "/../etc/passwd",
]


@dataclass(frozen=True)
class Site:
    """The whole app twice over one store: with accounts (`X-Test-Person` signs in), and for the local person."""

    guarded: TestClient
    local: TestClient
    blocks: GuardedBlocks
    people: Any
    project: int


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    workspace = tmp_path_factory.mktemp("workspace")
    store = Store.open(workspace)
    project = store.create_project("demo")
    store.add_prompts(project.id, [read_record({"prompt": "q", "responses": ["a", "b"]}, where="test")])
    people = NamedPeople(store, {"ann": "annotator", "root": "admin", "guest": None})
    guarded, local = (build_app(store, workspace, people=who) for who in (people, LocalPerson(store, name="lin")))
    blocks = guarded.routes[-1].app.get_blocks()  # type: ignore[attr-defined]
    yield Site(
        TestClient(guarded, base_url=ADDRESS),
        TestClient(local, base_url=ADDRESS, headers={"X-Rankwise": "1"}),
        blocks,
        people,
        project.id,
    )
    store.close()


@pytest.fixture
def guarded(site: Site) -> TestClient:
    return site.guarded


@pytest.fixture
def client(site: Site) -> TestClient:
    return site.local


@pytest.fixture
def blocks(site: Site) -> GuardedBlocks:
    return site.blocks


@pytest.fixture
def people(site: Site) -> Any:
    return site.people


def signed(name: str, **more: str) -> dict[str, str]:
    return {"X-Test-Person": name, "X-Rankwise": "1", **more}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "[::1]:7860", "0.0.0.0", ""]
)
@pytest.mark.parametrize("path", ["/", "/api/projects", "/config", "/theme.css"])
def test_a_forged_host_is_refused(client: TestClient, host: str, path: str) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert "127.0.0.1" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST"])
def test_this_computer_is_served(client: TestClient, host: str) -> None:
    assert client.get("/api/projects", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", [*POSTS, "/gradio_api/queue/join", "/gradio_api/run/x", "/gradio_api/upload"])
def test_a_post_from_another_site_is_refused(client: TestClient, path: str, headers: dict[str, str]) -> None:
    assert client.post(path, json={}, headers=headers).status_code == 403


def test_a_read_of_the_api_from_another_site_is_refused(client: TestClient) -> None:
    assert client.get("/api/projects", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_a_foreign_origin_is_never_allowed_to_read(client: TestClient) -> None:
    answer = client.get("/", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-allow")]


@pytest.mark.parametrize("path", POSTS)
def test_a_post_without_our_header_is_refused(guarded: TestClient, path: str) -> None:
    answer = guarded.post(path, json={}, headers={"X-Test-Person": "ann"})
    assert answer.status_code == 403
    assert "X-Rankwise" in answer.json()["detail"]


@pytest.mark.parametrize("path", CLOSED)
def test_closed_addresses_stay_closed_even_for_an_admin(guarded: TestClient, path: str) -> None:
    assert guarded.get(path, headers=signed("root")).status_code == 404
    assert guarded.post(path, json={}, headers=signed("root")).status_code == 404


@pytest.mark.parametrize(
    "path", [*GETS, *(f"/{page.path}" for page in PAGES), "/config", "/gradio_api/file=/etc/passwd"]
)
def test_a_stranger_reads_nothing(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 401
    assert guarded.get(path, headers=signed("guest")).status_code == 403


@pytest.mark.parametrize("path", [*POSTS, "/gradio_api/queue/join", "/gradio_api/run/x", "/gradio_api/cancel"])
def test_a_stranger_changes_nothing(guarded: TestClient, path: str) -> None:
    assert guarded.post(path, json={}, headers={"X-Rankwise": "1"}).status_code == 401
    assert guarded.post(path, json={}, headers=signed("guest")).status_code == 403


@pytest.mark.parametrize(
    "path", [*(f"/{page.path}" for page in PAGES if page.role == "admin"), "/config", "/gradio_api/upload"]
)
def test_an_annotator_opens_no_page_of_an_admin(guarded: TestClient, path: str) -> None:
    assert guarded.get(path, headers=signed("ann")).status_code == 403


def test_an_annotator_ranks(guarded: TestClient) -> None:
    assert guarded.get("/", headers=signed("ann")).status_code == 200
    assert guarded.get("/api/task?project=1", headers=signed("ann")).status_code == 200


def test_a_person_without_a_role_in_the_project_is_refused_by_the_handler(
    guarded: TestClient, people: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "role", lambda person, project_id: None)
    answer = guarded.get("/api/task?project=1", headers=signed("ann"))
    assert answer.status_code == 403
    assert guarded.get("/api/projects", headers=signed("ann")).json() == {"projects": []}


def test_no_event_of_an_admin_page_runs_for_an_annotator_or_a_stranger(blocks: GuardedBlocks) -> None:
    admin_pages = {page.path for page in PAGES if page.role == "admin"}
    handlers = [fn for fn in blocks.fns.values() if fn.page in admin_pages]
    assert handlers
    for handler in handlers:
        for name in ("ann", "guest", "mallory", None):
            with pytest.raises(gr.Error, match="does not allow"):
                asyncio.run(blocks.process_api(handler, [], request=SimpleNamespace(username=name)))


async def event_of(page: str, people: Any, request: Any) -> None:
    """One event in an app whose page `ours` needs an admin."""
    blocks = GuardedBlocks(people=people, page_roles={"": "annotator", "ours": "admin"})
    await blocks.process_api(SimpleNamespace(page=page), [], request=request)


def test_an_event_of_a_page_nobody_listed_needs_an_admin(people: Any) -> None:
    with pytest.raises(gr.Error):
        asyncio.run(event_of("forgotten", people, request=SimpleNamespace(username="ann")))


def test_a_batch_is_refused_when_one_of_its_people_may_not(people: Any) -> None:
    batch = [SimpleNamespace(username="root"), SimpleNamespace(username="ann")]
    with pytest.raises(gr.Error):
        asyncio.run(event_of("ours", people, request=batch))


def test_an_event_posted_by_its_number_is_refused_too(guarded: TestClient, blocks: GuardedBlocks) -> None:
    number = next(number for number, fn in blocks.fns.items() if fn.page)
    body = {"data": [], "fn_index": number, "session_hash": "abc"}
    answer = guarded.post("/gradio_api/run/anything", json=body, headers=signed("ann"))
    assert answer.status_code >= 400


def test_a_long_body_is_refused_announced_or_not(client: TestClient) -> None:
    long = b'{"comment": "' + b"x" * MAX_API_BODY_BYTES + b'"}'
    assert client.post("/api/submit", content=long).status_code == 413
    assert client.post("/api/submit", content=iter([long[:1000], long[1000:]])).status_code == 413


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/api/projects", "/nothing"):
        headers = client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/projects").headers["cache-control"] == "no-store"


def test_a_path_cannot_slip_past_the_gate_by_its_spelling(guarded: TestClient) -> None:
    for path in ("//data", "/data/", "/./data", "/DATA", "/%64ata", "/api/../data"):
        answer = guarded.get(f"{ADDRESS}{path}", headers=signed("ann"), follow_redirects=False)
        assert answer.status_code in (403, 404), path
