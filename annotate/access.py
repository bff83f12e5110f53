"""What a page's handler asks before it acts: who sent this event, and may this person do it here?

The gate and the guarded Blocks asked already, by page; a handler asks again, by project.
"""

from __future__ import annotations

import gradio as gr

from annotate.people import People, Person, allows
from data.entities import Project
from data.errors import Forbidden, NotFound
from data.store import Store


def signed_in(people: People, request: gr.Request) -> Person:
    """The person behind an event. Raises Forbidden."""
    person = people.signed_in(request.request) if request.request else None
    if person is None:
        raise Forbidden("You are not signed in. Sign in first.")
    return person


def admin(people: People, request: gr.Request) -> Person:
    """The person behind an event that concerns no single project. Raises Forbidden."""
    person = signed_in(people, request)
    if not allows(people.highest_role(person.name), "admin"):
        raise Forbidden("Only an admin may do this. Ask an admin of a project.")
    return person


def admin_of(people: People, request: gr.Request, project: Project) -> Person:
    """The person behind an event that concerns `project`. Raises Forbidden."""
    person = signed_in(people, request)
    if not allows(people.role(person, project.id), "admin"):
        raise Forbidden(f"You are no admin of project '{project.name}'. Ask one of its admins.")
    return person


def chosen_project(store: Store, project_id: object) -> Project:
    """The project a page names; what a page sends may be anything. Raises NotFound."""
    for project in store.projects():
        if project.id == project_id:
            return project
    raise NotFound("Choose a project first." if project_id is None else "This project is gone. Reload the page.")


def projects_of(store: Store, people: People, person: Person) -> list[Project]:
    """The projects this person administers, newest first: the newest is the one a person most likely works on."""
    mine = [p for p in store.projects() if allows(people.role(person, p.id), "admin")]
    return mine[::-1]
