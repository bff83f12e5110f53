"""The real server on a workspace of its own, and headless Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_WITHIN_S = 60
# Chromium talks to its makers unless told not to; the tests count every request that leaves this computer.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server:
    """`python app.py` as a child process on one workspace and one port."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [sys.executable, "app.py", "--workspace", str(self.workspace), "--port", str(self.port)]
        environment = {k: v for k, v in os.environ.items() if k != "DATABASE_URL"}
        with (self.workspace / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api/projects", timeout=START_WITHIN_S).close()
                return
            except OSError:
                log_text = (self.workspace / "server.log").read_text()
                assert self._process.poll() is None, log_text
                assert time.monotonic() < deadline, log_text
                time.sleep(0.1)

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, or kill -9; the exit status."""
        assert self._process is not None
        self._process.send_signal(how)
        status = self._process.wait(timeout=20)
        self._process = None
        return status

    def running(self) -> bool:
        return self._process is not None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def server(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Serves what the module's `filled` fixture put into the workspace."""
    request.getfixturevalue("filled")
    server = Server(workspace)
    server.start()
    yield server
    if server.running():
        assert server.end() == 0
        assert "Traceback" not in (workspace / "server.log").read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: install requirements-dev.txt")
    executable = os.environ.get("PLAYWRIGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not executable:
        pytest.skip("needs Chromium: apt install chromium, or set PLAYWRIGHT_CHROMIUM to the program")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Opens a project in a fresh browser profile; a script error in any page fails the test."""
    contexts: list[Any] = []
    errors: list[str] = []

    def open_page(project: str, *, path: str = "/", **options: Any) -> Any:
        options = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", **options}
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server.url}{path}?project={project}")
        page.wait_for_selector(".board:not([data-state=loading])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
