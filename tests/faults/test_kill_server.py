"""The server is killed with SIGKILL again and again while people submit; clients retry with the same key.

Afterwards every acknowledged ranking is there once, as it was sent, and nothing else is.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from data.records import read_record
from data.store import Store
from tests.conftest import ROOT

KILLS = 20
PROMPTS = 20_000
CLIENTS = 4
START_TIMEOUT_S = 60


@dataclass
class Client:
    """One person's script: takes prompts from a shared list, submits each until the server says it is stored."""

    address: str
    project: int
    prompts: list[int]
    stop: threading.Event = field(default_factory=threading.Event)
    acknowledged: dict[int, str] = field(default_factory=dict)
    retries: int = 0

    def run(self) -> None:
        headers = {"X-Rankwise": "1"}
        with httpx.Client(base_url=self.address, headers=headers, timeout=5, trust_env=False) as http:
            while not self.stop.is_set():
                try:
                    prompt = self.prompts.pop()
                except IndexError:
                    return
                self._submit(http, prompt)

    def _submit(self, http: httpx.Client, prompt: int) -> None:
        labels = random.Random(prompt).sample(["A1", "A2", "A3"], 3)
        body = {"project": self.project, "prompt": prompt, "revision": 0, "key": f"prompt-{prompt:06d}"}
        body |= {"status": "ranked", "ranking": ">".join(labels), "seconds": 1.0}
        while not self.stop.is_set():
            try:
                answer = http.post("/api/submit", json=body)
            except httpx.HTTPError:
                self.retries += 1
                time.sleep(0.05)
                continue
            assert answer.status_code == 200, answer.text
            self.acknowledged[prompt] = str(body["ranking"])
            return
        self.prompts.append(prompt)


def serve(workspace: Path, port: int) -> subprocess.Popen[bytes]:
    """The real app, in a process group of its own; returns once it answers."""
    command = [sys.executable, "app.py", "--workspace", str(workspace), "--port", str(port)]
    with (workspace / "server.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/api/projects", timeout=2, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            assert server.poll() is None, (workspace / "server.log").read_text()
            time.sleep(0.05)
        else:
            return server
    raise AssertionError("the server did not start in time")


def kill(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stored(workspace: Path) -> list[tuple[int, str, str]]:
    """Prompt, key and ranking (labels as shown) of every ranking row, straight from the file."""
    with sqlite3.connect(workspace / "rankwise.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute(
            "SELECT ranking.prompt_id, client_key, group_concat('A' || shown, '>') FROM ranking "
            "JOIN (SELECT * FROM rank ORDER BY ranking_id, rank) AS placed ON placed.ranking_id = ranking.id "
            "GROUP BY ranking.id ORDER BY ranking.id"
        ).fetchall()
    connection.close()
    return rows


def kill_again_and_again(workspace: Path, port: int, client: Client) -> None:
    """Start, submit, kill, `KILLS` times; then once more without a kill, so that every retry ends."""
    server = serve(workspace, port)
    threads = [threading.Thread(target=client.run, daemon=True) for _ in range(CLIENTS)]
    try:
        for thread in threads:
            thread.start()
        moment = random.Random(7)
        for _ in range(KILLS):
            time.sleep(moment.uniform(0.1, 0.6))
            kill(server)
            server = serve(workspace, port)
        time.sleep(0.5)
    finally:
        client.stop.set()
        kill(server)
    for thread in threads:
        thread.join(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_and_double_no_acknowledged_ranking(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    project = store.create_project("faults")
    rows = ({"id": f"p{i}", "prompt": f"{i}?", "responses": ["x", "y", "z"]} for i in range(PROMPTS))
    store.add_prompts(project.id, [read_record(row, where="test") for row in rows])
    store.close()

    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", project.id, list(range(PROMPTS, 0, -1)))
    kill_again_and_again(tmp_path, port, client)

    found = stored(tmp_path)
    sent = {prompt: (f"prompt-{prompt:06d}", ranking) for prompt, ranking in client.acknowledged.items()}
    assert len(sent) > KILLS
    assert len({prompt for prompt, _, _ in found}) == len(found), "a ranking was stored twice"
    lost = sent.keys() - {prompt for prompt, _, _ in found}
    assert lost == set()
    for prompt, key, ranking in found:
        if prompt in sent:
            assert (key, ranking) == sent[prompt]
    # What was stored without an acknowledgement is what each client was about to retry when it stopped.
    assert len(found) - len(sent) <= CLIENTS
    print(f"{KILLS} kills, {len(sent)} acknowledged, {client.retries} retries, 0 lost, 0 doubled")
