"""Processes that take turns: each side of a comparison stays loaded in its own, and works only when told to.

The parent imports no large library: on Linux a child's peak memory begins with what its parent held.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any


class SideFailed(Exception):
    """A side's process ended before its time; its own words are on standard error."""

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"the process of '{name}' ended with code {exit_code}")
        self.exit_code = exit_code


class Side:
    """The parent's end: `INTERPRETER -m MODULE --worker NAME`, spoken to in JSON lines. It begins to load at once."""

    def __init__(self, module: str, name: str, work: Mapping[str, Any], *, interpreter: str = sys.executable) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [interpreter, "-m", module, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_surroundings(int(work["threads"]), folder=str(work["folder"]))},
        )
        self._tell(work)

    def loaded(self) -> dict[str, Any]:
        """Wait until it has loaded; what it says of itself."""
        return self._answer()

    def step(self) -> dict[str, Any]:
        """Let it work once; what it found."""
        self._tell("step")
        return self._answer()

    def end(self) -> int:
        """Let it end; returns its peak memory in bytes."""
        self._tell("end")
        peak = int(self._answer()["peak_rss"])
        self._process.wait()
        return peak

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def _tell(self, command: object) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # a child that ended is noticed where its answer is awaited
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SideFailed(self.name, self._process.wait())
        return dict(json.loads(line))


class Turns:
    """The child's end. `work` is what the parent gave it to do."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever a library prints must not come between the answers
        self.work: dict[str, Any] = json.loads(self._next())

    def answer(self, **found: object) -> None:
        """Hand something to the parent; the first answer says that this side is loaded."""
        self._answers.write(json.dumps(found) + "\n")
        self._answers.flush()

    def wait(self) -> bool:
        """Sleep until told to work (True) or to end (False)."""
        return bool(json.loads(self._next()) == "step")

    def close(self) -> None:
        """The last word."""
        self.answer(peak_rss=peak_rss())

    def _next(self) -> str:
        line = sys.stdin.readline()
        if not line:  # the parent is gone
            raise SystemExit(1)
        return line


def peak_rss() -> int:
    """The most memory this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _surroundings(threads: int, *, folder: str) -> dict[str, str]:
    """The same for every side: the CPU alone, equal threads, nothing sent anywhere, temporary files in its `folder`."""
    return {
        "TMPDIR": folder,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
    }
