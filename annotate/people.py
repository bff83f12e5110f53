"""Who a request comes from, and what this person may do.

Without accounts there is one person, the one at this computer: no password, served on the loopback address only, admin
of every project. Accounts are another implementation of `People`.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection

from data.store import Store

_LEVELS = {"annotator": 1, "reviewer": 2, "admin": 3}


@dataclass(frozen=True)
class Person:
    """A signed-in person; `id` is the annotator's id in the store."""

    id: int
    name: str


class People(Protocol):
    """The sign-in and the roles; asked anew for every request, never remembered in a page."""

    def signed_in(self, request: HTTPConnection) -> Person | None:
        """The person behind a request, or None."""

    def role(self, person: Person, project_id: int) -> str | None:
        """The person's role in a project, or None."""

    def highest_role(self, name: str) -> str | None:
        """The highest role this person has anywhere: it decides which pages open."""


def allows(role: str | None, needed: str) -> bool:
    """Whether `role` includes `needed`: an admin may review, a reviewer may annotate."""
    return _LEVELS.get(role or "", 0) >= _LEVELS[needed]


class LocalPerson:
    """The one person of a workspace without accounts."""

    def __init__(self, store: Store, *, name: str | None = None) -> None:
        self._store = store
        annotator = store.ensure_annotator(name or _login_name())
        self.person = Person(annotator.id, annotator.name)

    def signed_in(self, request: HTTPConnection) -> Person | None:
        """Always the local person: the gate lets in nothing that was not addressed to this computer."""
        return self.person

    def role(self, person: Person, project_id: int) -> str | None:
        """Admin. Written down on first sight, so that the store agrees once accounts come."""
        if self._store.role(project_id, person.id) != "admin":
            self._store.grant(project_id, person.id, "admin")
        return "admin"

    def highest_role(self, name: str) -> str | None:
        """Admin for the local person, nothing for another name."""
        return "admin" if name == self.person.name else None


def _login_name() -> str:
    """The operating system's name for the user; a container may have none."""
    try:
        return getpass.getuser() or "local"
    except (KeyError, OSError):
        return "local"
