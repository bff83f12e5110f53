"""Accounts for tests."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from annotate.people import Person
from data.store import Store


class NamedPeople:
    """The header `X-Test-Person` says who it is; each has one role everywhere, or none."""

    def __init__(self, store: Store, roles: dict[str, str | None]) -> None:
        self._ids = {name: store.ensure_annotator(name).id for name in roles}
        self._roles = roles

    def signed_in(self, request: HTTPConnection) -> Person | None:
        name = request.headers.get("x-test-person", "")
        return Person(self._ids[name], name) if name in self._ids else None

    def role(self, person: Person, project_id: int) -> str | None:
        return self._roles[person.name]

    def highest_role(self, name: str) -> str | None:
        return self._roles.get(name)
