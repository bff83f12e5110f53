"""The run folder: what a training is doing, kept in files that outlive it.

`config.json` what was asked, `status.json` where it stands, `metrics.jsonl` one row a log step, `log.txt`,
`checkpoint-N/`, `adapter/` the deliverable, `eval.json`, `curves.png`, `README.md` the model card.
Free of torch: the web process reads runs through this module.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from data.errors import BadInput, NotFound, UserError
from train.checkpoints import checkpoints, looks_whole, step_of
from train.files import atomic_text, write_json
from train.interrupt import Stopped

REQUEST = "request.json"
"""Laid down by `train.jobs` in a run folder that its child is about to fill."""

_BEFORE_START = {REQUEST, "status.json", "log.txt"}
_ENDED = "the process ended unexpectedly; see log.txt"


@dataclass(frozen=True)
class Status:
    """Where a run stands. `state`: running, done, failed or stopped; times are ISO 8601 in UTC.

    `pid` with `process_started` (seconds since 1970) names the process for certain: a pid alone is used again.
    """

    stage: str
    state: str
    pid: int
    process_started: float
    step: int = 0
    total_steps: int = 0
    eta_s: float | None = None
    message: str = ""
    started_at: str = ""
    finished_at: str = ""

    @property
    def has_process(self) -> bool:
        """Whether the process that wrote this still exists, be it only to clean up."""
        return _process_lives(self.pid, self.process_started)

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this is still at work."""
        return self.state == "running" and self.has_process


class Run:
    """One run folder being written by this process, or, where it `follows`, by another that it works beside."""

    def __init__(self, path: Path, status: Status, *, follows: bool = False) -> None:
        self.path = path
        self.status = status
        self.follows = follows
        """Nothing is written from here."""
        self.last_word = ""
        """What stays in the status of a run that is done."""
        self._write_status()

    @classmethod
    def create(cls, path: Path, *, stage: str, config: Mapping[str, Any]) -> Run:
        """A new run folder. Raises BadInput where `path` already holds something."""
        check_output(path)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "config.json", {"stage": stage, **config})
        (path / REQUEST).unlink(missing_ok=True)
        return cls(path, _own_status(stage))

    @classmethod
    def reopen(cls, path: Path, *, step: int) -> Run:
        """A run to be continued from `step`. Rows measured after it are dropped: they will be measured again."""
        before = read_status(path)
        if before.alive and before.pid != os.getpid():  # our own pid: written by the job that started us
            raise BadInput(f"--resume {path}: process {before.pid} is still at work on it. Stop it first or wait.")
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        with atomic_text(path / "metrics.jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        (path / REQUEST).unlink(missing_ok=True)
        started_at = before.started_at or _now()
        total = before.total_steps
        return cls(path, replace(_own_status(before.stage), step=step, total_steps=total, started_at=started_at))

    @classmethod
    def follow(cls, path: Path) -> Run:
        """A run that another process has created or reopened."""
        return cls(path, read_status(path), follows=True)

    def update(self, **changes: Any) -> None:
        """Change fields of the status."""
        self.status = replace(self.status, **changes)
        self._write_status()

    def record(self, row: Mapping[str, float]) -> None:
        """Append one row to `metrics.jsonl`; whoever reads the file sees whole lines only."""
        if self.follows:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, state: str, message: str = "") -> None:
        """The last word: done, failed or stopped."""
        self.status = replace(self.status, state=state, message=message, eta_s=None, finished_at=_now())
        try:
            self._write_status()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # A full disk has no room for a new file, but the one that is there still has its block.
            _overwrite(self.path / "status.json", json.dumps(asdict(self.status)))

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Copy the log to `log.txt` and write down how the work inside ended; exceptions go on to the caller."""
        if self.follows:
            yield
            return
        handler = _log_handler(self.path / "log.txt")
        try:
            yield
        except Stopped as stopped:
            _note(handler, str(stopped))
            self.finish("stopped", str(stopped))
            raise
        except UserError as error:
            _note(handler, f"error: {error}")
            self.finish("failed", str(error))
            raise
        except BaseException as error:
            _note(handler, traceback.format_exc())
            self.finish("failed", f"{type(error).__name__}: {error}"[:500] + "; see log.txt")
            raise
        else:
            self.finish("done", self.last_word)
        finally:
            if handler:
                logging.getLogger().removeHandler(handler)
                with suppress(OSError):  # a full disk: the status has the last word
                    handler.close()

    def _write_status(self) -> None:
        if not self.follows:
            write_json(self.path / "status.json", asdict(self.status))


def check_output(path: Path) -> None:
    """Refuse an output folder that holds something else. Raises BadInput."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"--output {path}: this is a file; a run is a folder. Give another name.")
    if not path.is_dir():
        return
    found = {entry.name for entry in path.iterdir()}
    if found and not (REQUEST in found and found <= _BEFORE_START):
        raise BadInput(
            f"--output {path}: the folder is not empty; a run starts in a new one. "
            "Give another name, or continue it with --resume."
        )


def read_status(path: Path) -> Status:
    """The status as written. Raises NotFound where `path` is no run folder."""
    value = _read_json(path / "status.json")
    if value is None:
        raise NotFound(f"{path}: no run here (no readable status.json). Give the folder that --output named.")
    known = Status.__dataclass_fields__
    return Status(**{k: v for k, v in value.items() if k in known})


def observed_status(path: Path) -> Status:
    """The status, corrected where a run says it is running but its process is gone."""
    status = read_status(path)
    if status.state == "running" and not status.alive:
        # It may have finished between the two looks.
        status = read_status(path)
        if status.state == "running" and not status.alive:
            return replace(status, state="failed", message=_ENDED, eta_s=None)
    return status


def read_config(path: Path) -> dict[str, Any]:
    """`config.json`, or `request.json` of a run that has not begun; empty where neither can be read."""
    return _read_json(path / "config.json") or _read_json(path / REQUEST) or {}


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """`eval.json`, None until the run has written it."""
    return _read_json(path / "eval.json")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows of `metrics.jsonl`, in order."""
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    # What follows the last newline is a row still being written, or cut by a crash.
    return [json.loads(line) for line in lines[:-1] if line]


def checkpoint_step(path: Path) -> int:
    """The step of the newest checkpoint that looks whole, 0 where there is none. A resume reads it more closely."""
    return next((step_of(folder) for folder in checkpoints(path) if looks_whole(folder)), 0)


def _overwrite(path: Path, text: str) -> None:
    """Write into the file as it is; a reader may for a moment meet neither the old nor the new."""
    with path.open("r+", encoding="utf-8") as file:
        file.write(text)
        file.truncate()


def _own_status(stage: str) -> Status:
    started = psutil.Process().create_time()
    return Status(stage=stage, state="running", pid=os.getpid(), process_started=started, started_at=_now())


def _process_lives(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # The clock of the start time ticks in hundredths of a second.
        return bool(abs(process.create_time() - started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _log_handler(path: Path) -> logging.FileHandler | None:
    """A handler that copies the log to `path`, unless standard error already goes there."""
    if path.exists() and os.path.samestat(path.stat(), os.fstat(2)):
        return None
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    return handler


class _LogFile(logging.FileHandler):
    """A line that the disk does not take is lost, and no traceback is printed in its place."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


def _note(handler: logging.FileHandler | None, text: str) -> None:
    """To `log.txt` alone: the caller tells standard error."""
    if handler and handler.stream:
        with suppress(OSError):
            handler.stream.write(text + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
