"""python app.py: what it refuses, and what a new workspace holds."""

from __future__ import annotations

import socket
from pathlib import Path

import filelock
import pytest

import app
from data.store import Store


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.com", ""])
def test_another_address_is_refused_with_a_sentence(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["--workspace", str(tmp_path / "w"), "--host", host]) == 2
    assert "accounts come in a later release" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_taken_port_is_refused_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert app.main(["--workspace", str(tmp_path), "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err


def test_a_port_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--workspace", str(tmp_path), "--port", "70000"]) == 2
    assert "0 to 65535" in capsys.readouterr().err


def test_a_second_server_on_a_workspace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server.pid").write_text("4711")
    with filelock.FileLock(tmp_path / "server.lock"):
        assert app.main(["--workspace", str(tmp_path), "--port", "0"]) == 2
    assert "process 4711" in capsys.readouterr().err


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert app.main(["--workspace", str(tmp_path / "file"), "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --workspace")


def test_samples_are_loaded_once_and_only_into_an_empty_store(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for name in ("handwritten", "generated"):
        (folder / f"{name}.jsonl").write_text('{"id": "1", "prompt": "q", "responses": ["a", "b"]}\n')
    store = Store.open(tmp_path)
    app.load_samples(store, folder)
    assert {p.name for p in store.projects()} == {"samples", "samples-generated"}
    assert all("Rank the responses" in p.guidelines for p in store.projects())
    app.load_samples(store, folder)
    assert len(store.projects()) == 2
    store.close()
