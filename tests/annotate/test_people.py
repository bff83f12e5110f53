"""Who a request comes from."""

from __future__ import annotations

import getpass

import pytest

from annotate.people import LocalPerson, allows
from data.entities import Project
from data.store import Store


def test_a_higher_role_includes_the_lower_ones() -> None:
    assert allows("admin", "annotator")
    assert allows("reviewer", "reviewer")
    assert not allows("annotator", "reviewer")
    assert not allows(None, "annotator")


def test_the_local_person_is_admin_of_every_project_also_of_later_ones(store: Store, project: Project) -> None:
    local = LocalPerson(store, name="lin")
    later = store.create_project("later")
    for one in (project, later):
        assert local.role(local.person, one.id) == "admin"
        assert store.role(one.id, local.person.id) == "admin"


def test_the_local_person_keeps_one_identity_over_restarts(store: Store) -> None:
    assert LocalPerson(store, name="lin").person == LocalPerson(store, name="lin").person


def test_a_computer_without_user_names_has_a_local_person(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert LocalPerson(store).person.name == "local"


def test_another_name_has_no_role(local: LocalPerson) -> None:
    assert local.highest_role("lin") == "admin"
    assert local.highest_role("mallory") is None
