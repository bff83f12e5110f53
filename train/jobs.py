"""Start, watch and stop training processes. The only door from the web pages to training; free of torch.

A job is `python -m train STAGE …` in a process group of its own, its output in RUN/log.txt. All there is to know about
it lies in the run folder, so a restarted web server finds running jobs again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from data.errors import BadInput, Conflict, NotFound, UserError
from data.records import Message, PromptRecord, Response, write_record
from train.files import write_json
from train.rollout_files import Rollouts as Rollouts
from train.rollout_files import file_of, read_rollouts, steps
from train.rollout_files import visible as visible
from train.rollout_files import visible_lines as visible_lines
from train.run import (
    REQUEST,
    Status,
    checkpoint_step,
    observed_status,
    read_config,
    read_evaluation,
    read_metrics,
    read_status,
)
from train.stages import STAGES

_HOME = Path(__file__).resolve().parent.parent
_LOCK_WAIT_S = 10.0
_STOP_ASKED = ".stop-asked"
"""Lies in the run folder once somebody pressed Stop: an end by force is then no failure."""


@dataclass(frozen=True)
class RunInfo:
    """What a page shows of one run."""

    name: str
    path: Path
    status: Status
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    has_adapter: bool
    can_resume: bool
    """It ended before its end, and there is a checkpoint to continue from."""


def start(stage: str, args: Mapping[str, Any], *, workspace: Path, name: str = "") -> RunInfo:
    """Start `python -m train STAGE` with `args` (flag name to value, without `output` and `workspace`).

    Raises BadInput for impossible values and Conflict while another job of this workspace is at work.
    """
    config = check(stage, args, workspace=workspace)
    runs = workspace / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with _only_job(runs) as lock:
        path = _new_folder(runs, name or f"{stage}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        write_json(path / REQUEST, {"stage": stage, **config})
        fresh = Status(stage=stage, state="running", pid=0, process_started=0, started_at=_now())
        _launch([stage, *_flags({**config, "output": path})], path, status=fresh, lock=lock)
    return read_run(path)


def resume(path: Path, *, workspace: Path) -> RunInfo:
    """Continue a stopped or failed run from its newest checkpoint. Raises Conflict as `start` does."""
    status = observed_status(path)
    if status.state == "running":
        raise Conflict(f"{path.name} is running already.")
    if not checkpoint_step(path):
        raise NotFound(f"{path.name} has no checkpoint to continue from. Start a new run.")
    with _only_job(workspace / "runs") as lock:
        _launch([status.stage, "--resume", str(path.resolve())], path, status=status, lock=lock)
    return read_run(path)


def list_runs(workspace: Path) -> list[RunInfo]:
    """All runs of the workspace, newest first."""
    folders = [p.parent for p in (workspace / "runs").glob("*/status.json")]
    return sorted((read_run(p) for p in folders), key=lambda r: (r.status.started_at, r.name), reverse=True)


def read_run(path: Path) -> RunInfo:
    """One run, its state checked against the living processes. Raises NotFound."""
    status = observed_status(path)
    return RunInfo(
        name=path.name,
        path=path,
        status=status,
        config=read_config(path),
        evaluation=read_evaluation(path),
        has_adapter=(path / "adapter" / "adapter_config.json").exists(),
        can_resume=status.state in ("stopped", "failed") and checkpoint_step(path) > 0,
    )


def metrics(path: Path, *, max_points: int = 500) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`, thinned evenly to `max_points` training rows; rows of an evaluation all stay."""
    rows = read_metrics(path)
    training = [i for i, row in enumerate(rows) if "loss" in row]
    if len(training) <= max_points:
        return rows
    last = len(training) - 1
    kept = {training[round(i * last / (max_points - 1))] for i in range(max_points)}
    return [row for i, row in enumerate(rows) if i in kept or "loss" not in row]


def rollout_steps(path: Path) -> list[int]:
    """The steps of a run of PPO whose rollouts were kept, in order."""
    return steps(path)


def rollouts(path: Path, step: int) -> Rollouts:
    """What was written, scored and learned in one of them. Raises NotFound, or BadInput for a damaged file."""
    return read_rollouts(file_of(path, step))


def log_tail(path: Path, *, max_bytes: int = 20_000) -> str:
    """The end of `log.txt`, whole lines; empty where there is none yet."""
    try:
        with (path / "log.txt").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return text if size <= max_bytes else text.partition("\n")[2]


def stop(path: Path, *, grace_s: float = 10.0) -> Status:
    """Ask the job to stop (SIGTERM: it saves a checkpoint first) and end it for certain after `grace_s` seconds."""
    status = read_status(path)
    if status.alive:
        (path / _STOP_ASKED).touch()
        _signal(status, signal.SIGTERM)
        if not _wait_until_gone(status, grace_s):
            _signal(status, signal.SIGKILL)
            _wait_until_gone(status, grace_s)
        _settle(path, "")
    return observed_status(path)


def score_job(
    model: str, prompt: Sequence[Message], responses: Sequence[str], *, workspace: Path, timeout_s: float = 180.0
) -> list[float]:
    """Rewards of some responses, in order, computed by `python -m train score` in a child process.

    Raises UserError with the child's own sentence, or when it takes longer than `timeout_s`.
    """
    record = PromptRecord(prompt=tuple(prompt), responses=tuple(Response(text) for text in responses), id="pasted")
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data.jsonl"), Path(folder, "scores.jsonl")
        data.write_text(json.dumps(write_record(record)) + "\n", encoding="utf-8")
        command = _command(["score", *_flags({"model": model, "data": data, "out": out, "workspace": workspace})])
        try:
            done = subprocess.run(
                command,
                cwd=_HOME,
                env={**os.environ, "PYTHONUTF8": "1"},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{model}: no scores within {timeout_s:.0f} seconds. Try again when less is running."
            ) from None
        if done.returncode == 0:
            scores: list[float] = json.loads(out.read_text(encoding="utf-8"))["scores"]
            return scores
    raise UserError(_last_error(done.stderr) or f"scoring failed (exit {done.returncode}): {done.stderr[-300:]}")


def check(stage: str, args: Mapping[str, Any], *, workspace: Path) -> dict[str, Any]:
    """The stage's whole config, defaults filled in; its own rules are applied here already."""
    if stage not in STAGES or "output" not in STAGES[stage].config.__dataclass_fields__:
        raise BadInput(f"'{stage}' is no training stage.")
    unknown = sorted(set(args) - set(STAGES[stage].config.__dataclass_fields__))
    if unknown:
        raise BadInput(f"{stage} has no setting '{unknown[0]}'.")
    fixed = {"output": Path("unnamed"), "workspace": workspace.resolve()}
    config = asdict(STAGES[stage].config(**{**args, **fixed}))
    model = Path(config["model"]).expanduser()
    if model.exists():
        config["model"] = str(model.resolve())
    config["data"] = Path(config["data"]).expanduser().resolve()
    if not config["data"].exists():
        raise NotFound(f"{config['data']}: there is no such file or folder. Export the project first.")
    return {key: str(v) if isinstance(v, Path) else v for key, v in config.items() if key not in ("output", "resume")}


@contextmanager
def _only_job(runs: Path) -> Iterator[IO[str]]:
    """The workspace's job lock. The child inherits it, so it is held exactly as long as a job lives."""
    with (runs / ".lock").open("a") as lock:
        # A job that has written its end holds the lock for a moment more, until its last thread is gone.
        until = time.monotonic() + _LOCK_WAIT_S
        while not _try_lock(lock):
            busy = next((r.name for r in list_runs(runs.parent) if r.status.state == "running"), "")
            if busy or time.monotonic() > until:
                raise Conflict(f"{busy or 'another job'} is still running; one job at a time. Wait for it or stop it.")
            time.sleep(0.05)
        yield lock


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _new_folder(runs: Path, name: str) -> Path:
    if not name or name.startswith(".") or "/" in name or "\x00" in name or len(name) > 100:
        raise BadInput(f"run name '{name[:40]}': a name is up to 100 characters without '/', not opening with a dot.")
    path = runs.resolve() / name
    try:
        path.mkdir()
    except FileExistsError:
        raise BadInput(f"there is a run '{name}' already. Give another name.") from None
    return path


def _launch(arguments: Sequence[str], path: Path, *, status: Status, lock: IO[str]) -> None:
    """Start the child and note its process in `status`; a thread waits for its end."""
    (path / _STOP_ASKED).unlink(missing_ok=True)
    with (path / "log.txt").open("ab") as output:
        child = subprocess.Popen(
            _command(arguments),
            cwd=_HOME,
            env={**os.environ, "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    # The child writes the same pid as soon as it has read its input: whoever comes second changes nothing.
    started = psutil.Process(child.pid).create_time()
    begun = replace(status, state="running", pid=child.pid, process_started=started, message="starting", finished_at="")
    write_json(path / "status.json", asdict(begun))
    threading.Thread(target=_reap, args=(child, path), name=f"reap-{path.name}", daemon=True).start()


def _reap(child: subprocess.Popen[bytes], path: Path) -> None:
    """Wait for the child, so that it leaves no zombie, and note its end if it could not."""
    code = child.wait()
    _settle(path, _last_error(log_tail(path)) or f"the process ended unexpectedly (exit {code}); see log.txt")


def _settle(path: Path, sentence: str) -> None:
    """Write the end of a run whose process is gone without having done so."""
    try:
        status = read_status(path)
    except NotFound:
        return  # the folder was removed meanwhile
    if status.state != "running" or status.alive:
        return
    if (path / _STOP_ASKED).exists():
        ended = replace(status, state="stopped", message="stopped by force, before it could save a checkpoint")
    else:
        ended = replace(status, state="failed", message=sentence)
    write_json(path / "status.json", asdict(replace(ended, eta_s=None, finished_at=_now())))


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "train", *arguments]


def _flags(config: Mapping[str, Any]) -> list[str]:
    """`--name=value` for each setting, `--name` or `--no_name` for switches."""
    flags = []
    for name, value in config.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no_{name}")
        elif value is not None:
            flags.append(f"--{name}={value.resolve() if isinstance(value, Path) else value}")
    return flags


def _signal(status: Status, number: int) -> None:
    """To the whole group where the job leads one (a run started by hand in a shell may not)."""
    try:
        if os.getpgid(status.pid) == status.pid:
            os.killpg(status.pid, number)
        else:
            os.kill(status.pid, number)
    except ProcessLookupError:
        pass  # it ended by itself meanwhile


def _wait_until_gone(status: Status, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while status.has_process:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _last_error(text: str) -> str:
    """The sentence of the last `error: …` line."""
    errors = [line.partition("error: ")[2] for line in text.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
