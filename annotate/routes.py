"""The addresses the ranking page talks to: plain routes beside Gradio, which answer in a few milliseconds.

Each asks who the person is and what this person may do in the project; nothing in a request says so.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from annotate.people import People, Person, allows
from annotate.tasks import history_view, view
from data.entities import Project, Submission, Task
from data.errors import Conflict, Forbidden, NotFound, UserError
from data.store import Store

MAX_ID = 2**31 - 1  # what an INTEGER column of PostgreSQL holds
MAX_RANKING_CHARS = 1000
MAX_TEXT_CHARS = 10_000

_STATUS_OF = {NotFound: 404, Conflict: 409, Forbidden: 403}


class _Body(BaseModel):
    """What a page sends: no number as text, no field we do not know."""

    model_config = ConfigDict(strict=True, extra="forbid")
    project: int = Field(ge=1, le=MAX_ID)


class SubmitBody(_Body):
    """A decision; the store checks what it says."""

    prompt: int = Field(ge=1, le=MAX_ID)
    revision: int = Field(ge=0, le=MAX_ID)
    key: str = Field(max_length=64)
    status: str = Field(max_length=20)
    ranking: str = Field(default="", max_length=MAX_RANKING_CHARS)
    seconds: float | None = Field(default=None, allow_inf_nan=False)
    comment: str = Field(default="", max_length=MAX_TEXT_CHARS)
    reason: str = Field(default="", max_length=MAX_TEXT_CHARS)


class UndoBody(_Body):
    """Take back the latest decision."""

    key: str = Field(max_length=64)


class DraftBody(_Body):
    """Unfinished work."""

    prompt: int = Field(ge=1, le=MAX_ID)
    ranking: str = Field(default="", max_length=MAX_RANKING_CHARS)
    comment: str = Field(default="", max_length=MAX_TEXT_CHARS)


class RankingDesk:
    """The handlers of the ranking page."""

    def __init__(self, store: Store, people: People) -> None:
        self._store = store
        self._people = people

    def router(self) -> APIRouter:
        """The routes, under `/api`."""
        router = APIRouter(prefix="/api")
        router.add_api_route("/projects", self.projects, methods=["GET"])
        router.add_api_route("/task", self.task, methods=["GET"])
        router.add_api_route("/history", self.history, methods=["GET"])
        router.add_api_route("/submit", self.submit, methods=["POST"])
        router.add_api_route("/undo", self.undo, methods=["POST"])
        router.add_api_route("/draft", self.draft, methods=["POST"])
        return router

    def projects(self, request: Request) -> dict[str, Any]:
        """The projects this person may annotate in."""
        person = self._person(request)
        mine = (p for p in self._store.projects() if allows(self._people.role(person, p.id), "annotator"))
        return {"projects": [{"id": p.id, "name": p.name} for p in mine]}

    def task(
        self,
        request: Request,
        project: int = Query(ge=1, le=MAX_ID),
        prompt: int | None = Query(default=None, ge=1, le=MAX_ID),
    ) -> dict[str, Any]:
        """The next task, or one of the person's earlier ones."""
        person, chosen = self._annotator(request, project)
        if prompt is None:
            return self._next(person, chosen)
        return self._view(person, chosen, self._store.task(chosen.id, prompt, person.id))

    def history(self, request: Request, project: int = Query(ge=1, le=MAX_ID)) -> dict[str, Any]:
        """The person's own earlier decisions."""
        person, chosen = self._annotator(request, project)
        return history_view(self._store.history(chosen.id, person.id))

    def submit(self, request: Request, body: SubmitBody) -> dict[str, Any]:
        """Store a decision; the answer holds the receipt and the next task."""
        person, chosen = self._annotator(request, body.project)
        self._store.task(chosen.id, body.prompt, person.id)  # refuses a prompt of a project that was not checked
        submission = Submission(
            prompt_id=body.prompt,
            revision=body.revision,
            key=body.key,
            status=body.status,
            ranking=body.ranking,
            seconds=body.seconds,
            comment=body.comment,
            reason=body.reason,
        )
        receipt = self._store.submit(person.id, submission)
        shown = {"prompt": receipt.prompt_id, "revision": receipt.revision, "status": receipt.status}
        return {"receipt": {**shown, "ranking": receipt.ranking}, **self._next(person, chosen)}

    def undo(self, request: Request, body: UndoBody) -> dict[str, Any]:
        """Reopen the latest decision; `undone` is false where there is none."""
        person, chosen = self._annotator(request, body.project)
        reopened = self._store.undo(chosen.id, person.id, key=body.key)
        if reopened is None:
            return {"undone": False, **self._next(person, chosen)}
        return {"undone": True, **self._view(person, chosen, reopened)}

    def draft(self, request: Request, body: DraftBody) -> dict[str, Any]:
        """Keep unfinished work for the next visit."""
        person, chosen = self._annotator(request, body.project)
        self._store.task(chosen.id, body.prompt, person.id)
        self._store.save_draft(person.id, body.prompt, draft=body.ranking, comment=body.comment)
        return {"saved": True}

    def _person(self, request: Request) -> Person:
        person = self._people.signed_in(request)
        if person is None:
            raise Forbidden("you are not signed in. Sign in first.")
        return person

    def _annotator(self, request: Request, project_id: int) -> tuple[Person, Project]:
        """The person and the project, if this person may annotate there."""
        person = self._person(request)
        chosen = next((p for p in self._store.projects() if p.id == project_id), None)
        if chosen is None:
            raise NotFound(f"project {project_id} does not exist. Choose another one.")
        if not allows(self._people.role(person, project_id), "annotator"):
            raise Forbidden(f"you have no role in project '{chosen.name}'. Ask its admin for one.")
        return person, chosen

    def _next(self, person: Person, project: Project) -> dict[str, Any]:
        return self._view(person, project, self._store.next_task(project.id, person.id))

    def _view(self, person: Person, project: Project, task: Task | None) -> dict[str, Any]:
        return view(project, self._store.progress(project.id, person.id), task)


def answer_mistakes_in_words(app: FastAPI) -> None:
    """Answer the user's mistakes with a status code and `{"detail": sentence}`."""
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _malformed_request)


def _user_error(request: Request, error: Exception) -> JSONResponse:
    status = next((code for kind, code in _STATUS_OF.items() if isinstance(error, kind)), 400)
    return JSONResponse({"detail": str(error)}, status)


def _malformed_request(request: Request, error: Exception) -> JSONResponse:
    """The first broken rule. The input itself is left out: it may be a NaN, which JSON cannot carry back."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "request"
    return JSONResponse({"detail": f"{field}: {first['msg']}. Reload the page and try again."}, 422)
