"""Training is killed with SIGKILL again and again, resumed each time, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import NotFound
from tests.conftest import ROOT
from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from train.checkpoints import seal
from train.run import checkpoint_step, observed_status, read_metrics, read_status

STEPS = 100
SAVE_STEPS = 10
KILLS = 5
START_TIMEOUT_S = 120


@pytest.fixture(scope="module", params=["rm", "sft", "dpo", "ppo"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A stage, and flags that name a model of two layers and a file of 24 ranked prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    config = llama_config()
    model = save_model(config, byte_tokenizer(), folder / "model")
    own = {
        "rm": [],
        "sft": ["--from_rankings", "top1", "--tokens_per_batch", "300"],
        "dpo": ["--health_max_new_tokens", "8"],
        "ppo": [
            *("--reward", "tests.train.text_rewards:letters", "--samples", "2", "--max_new_tokens", "6"),
            *("--per_device_train_batch_size", "4", "--num_ppo_epochs", "2", "--eval_prompts", "4"),
            *("--eval_steps", "25", "--kl_target", "0.5", "--kl_horizon", "100"),
        ],
    }[request.param]
    flags = ["--model", str(model), "--data", str(write_rows(folder / "ranked.jsonl", rows()))]
    return [request.param, *flags, *own]


def start(log: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The real command, in a process group of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "train", *flags],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def begin(run: Path, inputs: list[str]) -> subprocess.Popen[bytes]:
    """With a workspace of its own: a cache that is missing something would show."""
    flags = ["--output", str(run), "--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--lora_r", "4"]
    flags += ["--workspace", str(run.parent), "--learning_rate", "5e-3"]
    return start(run.with_suffix(".log"), *inputs, *flags)


def resume(run: Path) -> subprocess.Popen[bytes]:
    return start(run.with_suffix(".log"), read_status(run).stage, "--resume", str(run))


def finish(process: subprocess.Popen[bytes], run: Path) -> None:
    assert process.wait(timeout=START_TIMEOUT_S) == 0, run.with_suffix(".log").read_text()
    assert read_status(run).state == "done"


def reached(run: Path, process: subprocess.Popen[bytes]) -> int:
    """The step that this process has logged; 0 until it has taken over the run."""
    try:
        mine = read_status(run).pid == process.pid
    except NotFound:
        return 0
    return max((row["step"] for row in read_metrics(run)), default=0) if mine else 0


def kill_at(step: int, process: subprocess.Popen[bytes], run: Path, *, delay_s: float) -> int:
    """Wait until the process has logged `step`, a moment more, and kill it; returns the last step it logged."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while reached(run, process) < step:
        assert process.poll() is None, run.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, f"step {step} was not reached in time"
        time.sleep(0.002)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return max(row["step"] for row in read_metrics(run))


@pytest.fixture(scope="module")
def whole(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(begin(run, inputs), run)
    return run


def learned(run: Path) -> dict[str, bytes]:
    """What the run hands over, byte for byte, PPO's critic too, and what it measured on the held-out prompts.

    How often the reference was asked is what this process did, and the others before it.
    """
    found = json.loads((run / "eval.json").read_text())
    assert (run / "critic").exists() == (read_status(run).stage == "ppo")
    handed_over = [p for name in ("adapter", "critic") for p in run.glob(f"{name}/*")]
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in handed_over}
    return {**files, "eval.json": json.dumps({k: v for k, v in found.items() if k != "reference"}).encode()}


def curve(run: Path) -> list[dict[str, float]]:
    """What each step measured, without what clock and memory say of this process."""
    return [{k: v for k, v in row.items() if not of_this_process(k)} for row in read_metrics(run) if "loss" in row]


def of_this_process(key: str) -> bool:
    return key in ("seconds", "peak_memory_mb") or key.endswith("tokens_per_s")


def moments(seed: int) -> Iterator[tuple[int, float]]:
    """Steps to kill at, in order, and how many seconds later: within a step, or while a checkpoint is written."""
    chance = random.Random(seed)
    for step in sorted(chance.sample(range(SAVE_STEPS + 1, STEPS - 2 * SAVE_STEPS), KILLS)):
        yield step, chance.uniform(0, 0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_five_times_ends_bitwise_like_one_left_alone(
    whole: Path, inputs: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = begin(run, inputs)
    killed = []
    for step, delay_s in moments(seed=11):
        killed.append(kill_at(step, process, run, delay_s=delay_s))
        assert observed_status(run).state == "failed"
        assert SAVE_STEPS <= checkpoint_step(run) <= killed[-1]
        process = resume(run)
    finish(process, run)

    assert len(killed) == KILLS and max(killed) < STEPS
    assert [row["step"] for row in curve(run)] == list(range(1, STEPS + 1)), "each step once"
    assert curve(run) == curve(whole)
    assert learned(run) == learned(whole)
    print(f"killed at steps {killed} of {STEPS}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_checkpoint_cut_by_a_kill_is_passed_over(whole: Path, inputs: list[str], tmp_path: Path) -> None:
    """Resumed from the whole one before it, the run writes the cut one anew and ends as if nothing had happened."""
    run = tmp_path / "run"
    kill_at(2 * SAVE_STEPS + 1, process := begin(run, inputs), run, delay_s=0.0)
    complete = checkpoint_step(run)
    cut_short(run / f"checkpoint-{complete}", run / f"checkpoint-{complete + SAVE_STEPS}", state=None)
    assert checkpoint_step(run) == complete

    process = resume(run)
    finish(process, run)
    assert f"checkpoint-{complete + SAVE_STEPS}" not in {p.name for p in run.iterdir()}, "older ones are deleted"
    assert curve(run) == curve(whole)
    assert learned(run) == learned(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_after_its_last_step_needs_no_other(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    (run / "eval.json").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running", "finished_at": ""}))

    finish(resume(run), run)
    assert curve(run) == curve(whole)
    assert learned(run) == learned(whole)


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1.0, "global_st'], ids=["missing", "empty", "half"])
def test_a_checkpoint_counts_once_it_is_sealed(state: str | None, tmp_path: Path) -> None:
    good = tmp_path / "checkpoint-20"
    good.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        (good / name).write_bytes(b"whole")
    (good / "trainer_state.json").write_text(json.dumps({"global_step": 20}))
    seal(good)
    cut_short(good, tmp_path / "checkpoint-30", state=state)
    assert checkpoint_step(tmp_path) == 20


def cut_short(good: Path, cut: Path, *, state: str | None) -> None:
    """A checkpoint as a kill leaves it: weights there, optimiser state half, and of the last file only `state`.

    PPO's holds both in one file.
    """
    shutil.rmtree(cut, ignore_errors=True)
    cut.mkdir()
    half = "state.safetensors"
    if not (good / half).exists():
        half = "optimizer.pt"
        shutil.copy(good / "adapter_model.safetensors", cut)
    content = (good / half).read_bytes()
    (cut / half).write_bytes(content[: len(content) // 2])
    if state is not None:
        (cut / "trainer_state.json").write_text(state)
