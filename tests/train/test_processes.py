"""Two processes, really launched, that train one tiny model; and what they say to each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from data.errors import BadInput
from data.exporting import read_dataset
from tests.conftest import ROOT
from tests.train.made import rows, write_rows
from train import processes
from train.__main__ import main
from train.rollout_files import file_of, read_rollouts
from train.run import checkpoint_step, read_evaluation, read_metrics, read_status
from train.step_batches import GroupBatches, OwnShare, TokenBatches, shares

SETTINGS = ["--learning_rate", "1e-3", "--lora_r", "4", "--max_length", "200", "--eval_fraction", "0.1"]
TIMEOUT_S = 200
ROUNDING = 1e-6
"""Relative: what float32 leaves of a sum taken in another order."""
AFTER_ADAM = 1e-5
"""Relative, after four steps of Adam, which makes much of a rounding wherever a gradient is small."""


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """Two processes on the CPU: without GPUs --multi_gpu means gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    known = ["--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, "-m", *launch, *known, "-m", module, *arguments]


@contextmanager
def launched(log: Path, module: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher, in a process group of its own, all of which is gone at the end."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command(module, arguments), cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
        process.wait(TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def train_in_two(log: Path, *arguments: str, module: str = "train") -> int:
    with launched(log, module, arguments) as process:
        pass
    return process.returncode


def flags(stage: str, model: Path, data: Path, output: Path, *more: str) -> list[str]:
    """With a workspace of its own: what one run leaves must not help the other."""
    where = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return [stage, *where, "--workspace", str(output) + "-workspace", *SETTINGS, *more]


def tensors(folder: Path) -> dict[str, Tensor]:
    """Of the adapter, and of a head beside it."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def close(a: Any, b: Any) -> bool:
    """Equal but for rounding; of numbers in the log, log-probs and rewards are of the order of 1."""
    return a == b or abs(a - b) <= AFTER_ADAM * max(abs(a), abs(b), 1)


CASES = {
    "rm": ["rm", "--loss", "plackett_luce"],
    "dpo": ["dpo", "--health_max_new_tokens", "4"],
    "kto": ["dpo", "--loss", "kto", "--undesirable_weight", "0", "--health_prompts", "0"],  # so that z0 is above 0
    "sft": ["sft", "--from_rankings", "top1", "--tokens_per_batch", "0"],
}
PPO = ["ppo", "--reward", "tests.train.text_rewards:letters", "--max_new_tokens", "6", "--samples", "3"]
PPO += ["--num_mini_batches", "2", "--num_ppo_epochs", "2", "--max_steps", "4", "--eval_prompts", "3"]
FLEETING = ("seconds", "tokens_per_s", "peak_memory_mb")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does_with_the_same_prompts_a_step(case: str, tiny: Path, tmp_path: Path) -> None:
    """Over two epochs, whose last steps have fewer prompts than there are processes; steps take several passes."""
    data = nine_to_learn(tmp_path / "ranked.jsonl")
    two, one = both_ways(tiny, data, tmp_path, [*CASES[case], "--num_train_epochs", "2"])
    assert_learned_the_same(two / "adapter", one / "adapter")
    assert_same_rows(two, one)
    assert_same_folder(two, one)


def test_two_processes_write_and_learn_by_ppo_what_one_does(tiny: Path, tmp_path: Path) -> None:
    """Responses are drawn by prompt and seed, so that it does not matter who writes them."""
    two, one = both_ways(tiny, nine_to_learn(tmp_path / "ranked.jsonl"), tmp_path, PPO)
    for folder in ("adapter", "critic"):
        assert_learned_the_same(two / folder, one / folder)
    assert_same_rows(two, one)
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    texts = [
        {(row.prompt_id, row.response, row.token_id) for row in read_rollouts(file_of(run, 1)).frame.itertuples()}
        for run in (two, one)
    ]
    assert len(texts[1]) > 8 * 3
    assert {(prompt, token) for prompt, _, token in texts[0]} == {(prompt, token) for prompt, _, token in texts[1]}


def both_ways(model: Path, data: Path, folder: Path, case: Sequence[str]) -> tuple[Path, Path]:
    """The same training by two processes and by one, eight prompts a step."""
    kind, *more = case
    more += ["--tokens_per_forward", "150", "--eval_steps", "2", "--warmup_ratio", "0"]
    one = flags(kind, model, data, folder / "one", *more, "--per_device_train_batch_size", "8")
    assert main(one) == 0
    two = flags(kind, model, data, folder / "two", *more, "--per_device_train_batch_size", "4")
    assert train_in_two(folder / "log", *two) == 0, (folder / "log").read_text()
    return folder / "two", folder / "one"


def assert_learned_the_same(two: Path, one: Path) -> None:
    """Adapters, heads too."""
    ours, theirs = tensors(two), tensors(one)
    assert ours.keys() == theirs.keys()
    assert all(v.abs().max() > 3e-4 for k, v in theirs.items() if "lora_B" in k), "they are 0 at the start"
    for part in {name.split(".")[-2] for name in ours}:
        mine, expected = (torch.cat([v.flatten() for k, v in t.items() if part in k]) for t in (ours, theirs))
        assert (mine - expected).norm() <= AFTER_ADAM * expected.norm(), part


def assert_same_rows(two: Path, one: Path) -> None:
    """The metrics, in all of their four steps."""
    ours, theirs = (
        [{k: v for k, v in row.items() if not k.endswith(FLEETING)} for row in read_metrics(run)] for run in (two, one)
    )
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    assert [row["step"] for row in ours if "loss" in row] == [1, 2, 3, 4]
    assert any("eval_tokens" in row or "eval_loss" in row for row in ours)
    for row, same in zip(ours, theirs, strict=True):
        assert all(close(row[k], same[k]) for k in row), (row, same)
    first, same = (next(row for row in rows if "loss" in row) for rows in (ours, theirs))
    for name in ("loss", "grad_norm"):  # Adam hides the gradient's size, and half of it
        assert first[name] == pytest.approx(same[name], rel=ROUNDING)


def nine_to_learn(path: Path) -> Path:
    """Nine prompts to learn and some held out, all ranked strictly, the best half acceptable."""
    made = [row for n, row in enumerate(rows(40)) if n not in (1, 4, 6)]
    for row in made:
        for ranking in row["rankings"]:
            ranking["ranking"] = ranking["ranking"].replace(">", "|", 1)
    records = read_dataset(write_rows(path, made), eval_fraction=0.1).records
    learned = [row for row, r in zip(made, records, strict=True) if r.split == "train"]
    return write_rows(path, [*learned[:9], *(row for row in made if row not in learned)])


def assert_same_folder(two: Path, one: Path) -> None:
    """The main process alone has written, and everything."""
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    ours, theirs = (read_evaluation(run) for run in (two, one))
    assert ours is not None and theirs is not None
    assert ours["groups"] == theirs["groups"] and ours["eval"].keys() == theirs["eval"].keys()
    log = (two / "log.txt").read_text()
    assert log.count("done: ") == 1 and log.count("step 1/") == 1
    caches = [list(Path(f"{run}-workspace").glob("reference/*.jsonl")) for run in (two, one)]
    for ours_file, theirs_file in zip(*caches, strict=True):
        known, expected = (sorted(f.read_text().splitlines()) for f in (ours_file, theirs_file))
        assert len(known) == len(expected), "each response is in the file once"


LONG = {
    "rm": ["--max_steps", "60", "--tokens_per_batch", "150"],
    "ppo": [*PPO[1:], "--max_steps", "20", "--per_device_train_batch_size", "2"],
}
"""Their steps; those of the reward model are filled by tokens."""


@pytest.fixture(scope="module", params=LONG)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(kind: str, tiny: Path, ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    long = flags(kind, tiny, ranked, folder / "run", *LONG[kind], "--save_steps", "1000")
    assert train_in_two(folder / "log", *long) == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.mark.timeout(900)
def test_a_stop_of_the_launcher_saves_once_and_a_resumed_run_ends_as_the_uninterrupted(
    kind: str, whole: Path, tiny: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    long = flags(kind, tiny, ranked, run, *LONG[kind], "--save_steps", "1000")
    with launched(tmp_path / "log", "train", long) as process:
        until = time.monotonic() + TIMEOUT_S
        while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 3:
            assert time.monotonic() < until and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert process.returncode != 0
    status = read_status(run)
    assert (status.state, status.message) == ("stopped", "stopped by SIGTERM")
    assert 3 - (kind == "ppo") <= checkpoint_step(run) < status.total_steps, "PPO's first row is an evaluation"
    assert [p.name for p in run.glob("checkpoint-*")] == [f"checkpoint-{checkpoint_step(run)}"]
    assert "Traceback" not in (run / "log.txt").read_text()

    assert main([kind, "--resume", str(run)]) == 2
    assert "started with 2 processes, this is 1" in capsys.readouterr().err
    assert train_in_two(tmp_path / "log", kind, "--resume", str(run)) == 0, (tmp_path / "log").read_text()
    for folder in ("adapter", *(["critic"] if kind == "ppo" else [])):
        ours, theirs = tensors(run / folder), tensors(whole / folder)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("mistake", "shelf 3: the book is gone. Bring it back."),
        ("error", "RuntimeError: process 1: ZeroDivisionError: a bug; see log.txt"),
        ("killed", None),
    ],
)
def test_where_one_process_fails_the_others_end_and_the_run_says_why(
    how: str, said: str | None, tiny: Path, ranked: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = [how, "3", *flags("rm", tiny, ranked, run, "--save_steps", "2", "--max_steps", "8")]
    began = time.monotonic()
    assert train_in_two(log, *arguments, module="tests.train.failing_process") != 0
    assert time.monotonic() - began < TIMEOUT_S / 2, "nobody waits for the other"
    status = read_status(run)
    assert not status.has_process
    assert status.state == "failed", status
    assert status.message == said or (said is None and "another process has ended" in status.message)
    assert checkpoint_step(run) >= 2, "what was saved stays"
    if how == "mistake":
        assert log.read_text().count("error: shelf 3") == 1
        assert "data.errors" not in log.read_text(), "no traceback for a user's mistake"


def test_a_mistake_is_told_once_and_nothing_is_written(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    log, taken = tmp_path / "log", tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("mine")
    assert train_in_two(log, *flags("dpo", tiny, ranked, taken)) != 0
    assert log.read_text().count("the folder is not empty") == 1
    assert [p.name for p in taken.iterdir()] == ["letter.txt"]


def test_what_starts_one_process_where_several_were_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` sets this and no rank."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(BadInput, match=r"it starts one process only. Start them with `accelerate launch --multi_gpu"):
        processes.join()


def test_a_model_cut_in_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BadInput, match="each process holds the whole model"):
        processes.join()


def test_one_process_sums_and_gathers_nothing() -> None:
    values = torch.tensor([1.0, 2.0])
    assert processes.summed(values) is values
    assert processes.gathered([1, 2]) == [1, 2]
    assert processes.on_main(lambda: "x") == "x"
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    processes.barrier()


def test_steps_have_the_prompts_that_the_librarys_own_shuffle_gives_one_process() -> None:
    """So that runs from before there were several processes can be resumed."""
    config = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=5)
    data = list(range(23))
    loader = Accelerator(cpu=True, dataloader_config=config).prepare(
        DataLoader(data, batch_size=4, sampler=RandomSampler(data), collate_fn=list)
    )
    ours = GroupBatches(23, 4, seed=5)
    for epoch in range(3):
        loader.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert list(ours) == list(loader)
    assert len(ours) == len(loader) == 6


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_group_of_a_step_falls_to_one_process(world_size: int) -> None:
    sizes = [(n * 7) % 11 + 1 for n in range(23)]
    for batches in (GroupBatches(23, 5, seed=1), TokenBatches(sizes, 20, seed=1)):
        own = [list(OwnShare(batches, sizes, rank=n, world_size=world_size)) for n in range(world_size)]
        assert {len(steps) for steps in own} == {len(batches)}, "all take the same steps"
        for step, parts in zip(list(batches), zip(*own, strict=True), strict=True):
            assert sorted(n for part in parts for n in part) == sorted(step)


def test_tokens_are_dealt_out_evenly() -> None:
    sizes = [8, 1, 1, 1, 1, 4]
    assert shares(range(6), sizes, world_size=2) == [[0], [1, 2, 3, 4, 5]]
    assert shares([5], sizes, world_size=2) == [[5], []]
    assert json.dumps(shares([3, 2], sizes, world_size=1)) == "[[3, 2]]", "one process keeps the order"
