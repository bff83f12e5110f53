"""Trainings on a disk that loses, changes or refuses bytes, out of memory, and with numbers that are none.

Each ends in a sentence or goes on from the newest good checkpoint; what is resumed ends as if nothing had happened.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.train.adapters import edit
from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from tests.train.stopping import ppo_stopped_at, stopped_at
from train import ppo_update
from train.__main__ import main
from train.checkpoints import damage, newest_good, seal
from train.pass_trainer import PassTrainer
from train.ppo_losses import PolicyTerms
from train.ppo_update import Learner
from train.run import checkpoint_step, read_metrics, read_status

STEPS, SAVE_STEPS, STOP = 9, 3, 7
SLOW = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"
STATE = "state.safetensors"
"""All weights and the optimiser of a PPO checkpoint, which others keep in files of their own."""
STAGES = {
    "rm": (),
    "sft": ("--from_rankings", "top1", "--tokens_per_batch", "300"),
    "dpo": ("--health_prompts", "0", "--displacement_alarm", "0"),
    "ppo": (
        *("--reward", "tests.train.text_rewards:letters", "--samples", "2", "--max_new_tokens", "6"),
        *("--per_device_train_batch_size", "4", "--num_ppo_epochs", "2", "--eval_prompts", "2", "--inspect_steps", "0"),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ALL = ["rm", *(pytest.param(name, marks=SLOW) for name in ("sft", "dpo", "ppo"))]


def cases(*rm_alone: Any, everywhere: Any) -> list[Any]:
    """With a stage each: what is the same code in all of them is tried in one."""
    others = [pytest.param(name, *everywhere, marks=SLOW) for name in ("sft", "dpo", "ppo")]
    return [("rm", *everywhere), *(("rm", *case) for case in rm_alone), *others]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers and a file of 24 ranked prompts."""
    made = tmp_path_factory.mktemp("inputs")
    save_model(llama_config(), byte_tokenizer(), made / "model")
    write_rows(made / "ranked.jsonl", rows())
    return made


def begin(stage: str, folder: Path, run: Path, *more: str) -> int:
    flags = ["--model", str(folder / "model"), "--data", str(folder / "ranked.jsonl"), "--output", str(run)]
    flags += ["--workspace", str(folder), "--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS)]
    return main([stage, *flags, "--lora_r", "4", "--learning_rate", "5e-3", *STAGES[stage], *more])


def resume(run: Path) -> int:
    return main([read_status(run).stage, "--resume", str(run)])


def learned(run: Path) -> dict[str, bytes]:
    """All weights that the run hands over: the adapter's, and PPO's critic with its head."""
    found = {
        f"{p.parent.name}/{p.name}": p.read_bytes() for p in run.glob("*/*.safetensors") if "-" not in p.parent.name
    }
    assert len(found) == (3 if read_status(run).stage == "ppo" else 1)
    return found


def told_to_stop(stage: str, step: int) -> AbstractContextManager[None]:
    return (ppo_stopped_at if stage == "ppo" else stopped_at)(step)


def names(run: Path) -> set[str]:
    return {p.name for p in run.glob("checkpoint-*")}


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def make(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs of a stage, each made once: whole, or stopped before a step beyond the first checkpoints."""

    @cache
    def made(stage: str, *, stop: int = 0) -> Path:
        run = tmp_path_factory.mktemp(stage) / "run"
        with told_to_stop(stage, stop) if stop else nullcontext():
            assert begin(stage, folder, run) == (143 if stop else 0)
        return run

    return made


@pytest.fixture
def whole(stage: str, make: Callable[..., Path]) -> dict[str, bytes]:
    """What a run that met no fault has learned."""
    return learned(make(stage))


@pytest.fixture
def stopped(stage: str, make: Callable[..., Path]) -> Path:
    """A run that was stopped, with checkpoints of steps 6 and 7."""
    run = make(stage, stop=STOP)
    assert names(run) == {"checkpoint-6", "checkpoint-7"}
    assert newest_good(run) == run / "checkpoint-7"
    return run


def is_ppo(checkpoint: Path) -> bool:
    return (checkpoint / STATE).exists()


def cut(checkpoint: Path) -> str:
    name = STATE if is_ppo(checkpoint) else "optimizer.pt"
    os.truncate(checkpoint / name, 1000)
    return f"{name} has 1,000 bytes"


def lose(checkpoint: Path) -> str:
    """The library trains on without its state of chance, and ends elsewhere."""
    name = "trainer_state.json" if is_ppo(checkpoint) else "rng_state.pth"
    (checkpoint / name).unlink()
    return f"{name} is missing"


def lose_optimizer(checkpoint: Path) -> str:
    """The library trains on with a new one."""
    (checkpoint / "optimizer.pt").unlink()
    return "optimizer.pt is missing"


def flip(checkpoint: Path) -> str:
    """The last bit of the last weight, which nothing else would notice."""
    name = STATE if is_ppo(checkpoint) else WEIGHTS
    content = bytearray((checkpoint / name).read_bytes())
    content[-1] ^= 1
    (checkpoint / name).write_bytes(content)
    return f"{name} has changed since it was written"


@pytest.mark.parametrize(
    ("stage", "break_it"),
    [
        *cases((cut,), (lose,), (lose_optimizer,), everywhere=(flip,)),
        *(pytest.param("ppo", break_it, marks=SLOW) for break_it in (cut, lose)),
    ],
    indirect=["stage"],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_line_and_the_end_is_the_same(
    stage: str, break_it: Callable[[Path], str], stopped: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    told = break_it(run / "checkpoint-7")
    assert resume(run) == 0
    line = next(text for text in (run / "log.txt").read_text().splitlines() if "checkpoint-7" in text)
    assert told in line
    assert line.endswith("; checkpoint-6 is used instead")
    assert learned(run) == whole
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == list(range(1, STEPS + 1))
    assert names(run) == {"checkpoint-6", "checkpoint-9"}
    assert all(damage(run / name) == "" for name in names(run))


@pytest.mark.parametrize("stage", ALL, indirect=True)
def test_where_all_are_damaged_the_resume_is_refused_and_the_run_stays_as_it_was(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new optimiser on old weights would look like a resumed run and end elsewhere."""
    run = shutil.copytree(stopped, tmp_path / "run")
    flip(run / "checkpoint-6")
    told = flip(run / "checkpoint-7")
    before = (run / "metrics.jsonl").read_bytes(), (run / "status.json").read_bytes()
    assert resume(run) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert f"error: --resume {run}: no checkpoint can be used (checkpoint-7: {told}" in said
    assert ((run / "metrics.jsonl").read_bytes(), (run / "status.json").read_bytes()) == before
    cut(run / "checkpoint-6")
    told = cut(run / "checkpoint-7")
    assert checkpoint_step(run) == 0, "so that the page offers no Continue"
    assert resume(run) == 2
    assert f"{told} and was written with" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["rm", pytest.param("ppo", marks=SLOW)], indirect=True)
def test_a_stop_right_after_a_resume_leaves_the_checkpoint_alone(stage: str, stopped: Path, tmp_path: Path) -> None:
    """Writing it anew could lose the only one."""
    run = shutil.copytree(stopped, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in run.glob("checkpoint-*/*")}
    with told_to_stop(stage, STOP):
        assert resume(run) == 143
    assert {p: p.stat().st_mtime_ns for p in run.glob("checkpoint-*/*")} == before


@contextmanager
def before_step(step: int, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`act` on the loss of that step's passes, of PPO on the policy's."""
    original, learn, ppo_loss = PassTrainer.compute_loss, Learner.learn, ppo_update.policy_loss
    at: list[int] = []

    def compute_loss(trainer: PassTrainer, *args: Any, **options: Any) -> Tensor:
        loss = original(trainer, *args, **options)
        return act(loss) if trainer.state.global_step + 1 == step else loss

    def learned_at(learner: Learner, *args: Any, **options: Any) -> Any:
        at[:] = [options["step"]]
        return learn(learner, *args, **options)

    def policy_loss(*args: Any, **options: Any) -> PolicyTerms:
        terms = ppo_loss(*args, **options)
        return replace(terms, loss=act(terms.loss)) if at == [step] else terms

    with (
        patch.object(PassTrainer, "compute_loss", compute_loss),
        patch.object(Learner, "learn", learned_at),
        patch.object(ppo_update, "policy_loss", policy_loss),
    ):
        yield


class NoNumber(torch.autograd.Function):
    """A loss that is a number, with a gradient that is none."""

    @staticmethod
    def forward(context: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


def lose_the_number(loss: Tensor) -> Tensor:
    return loss * float("nan")


def lose_the_gradient(loss: Tensor) -> Tensor:
    found: Tensor = NoNumber.apply(loss)
    return found


def ask_for_a_petabyte(loss: Tensor) -> Tensor:
    torch.empty(2**50, dtype=torch.uint8)
    return loss


NO_MEMORY = "out of memory when 1125899906842624 bytes more were needed. Start a new run with "
NOT_FINITE = "step 6: the loss is not finite, with the prompts p"


@pytest.mark.parametrize(
    ("stage", "act", "told"),
    [
        ("rm", lose_the_number, "step 6: the loss is nan, computed from the prompts p"),
        ("rm", lose_the_gradient, "step 6: the gradient's norm is "),
        ("rm", ask_for_a_petabyte, NO_MEMORY),
        *(
            pytest.param(stage, lose_the_number, "step 6: the loss is nan, computed from the prompts p", marks=SLOW)
            for stage in ("sft", "dpo")
        ),
        pytest.param("ppo", lose_the_number, NOT_FINITE, marks=SLOW),
        pytest.param("ppo", lose_the_gradient, NOT_FINITE, marks=SLOW),
        pytest.param("ppo", ask_for_a_petabyte, NO_MEMORY, marks=SLOW),
    ],
    indirect=["stage"],
)
def test_what_stops_a_training_is_told_in_a_sentence_and_the_last_checkpoint_is_good(
    stage: str,
    act: Callable[[Tensor], Tensor],
    told: str,
    whole: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Step 6 is one that is saved: nothing of it may be. What memory ended, PPO saves as it was before that step."""
    run = tmp_path / "run"
    saved = {"checkpoint-3", "checkpoint-5"} if (stage, told) == ("ppo", NO_MEMORY) else {"checkpoint-3"}
    with before_step(6, act):
        assert begin(stage, folder, run) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"error: {told}")
    status = read_status(run)
    assert (status.state, status.step) == ("failed", 5)
    assert status.message.startswith(told)
    assert names(run) == saved
    assert newest_good(run) == run / max(saved)
    assert resume(run) == 0
    assert learned(run) == whole


def test_the_sentence_names_the_prompts_that_were_computed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {row["id"] for row in rows()}
    for act, flags in ((lose_the_number, ("--tokens_per_forward", "1")), (lose_the_gradient, ())):
        with before_step(2, act):
            assert begin("rm", folder, tmp_path / act.__name__, *flags) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        named = said.partition("from the prompts ")[2].partition(";")[0].split(", ")
        assert set(named) <= known
        assert len(named) == (1 if flags else 4), "of one pass, or of all of the step"
    with before_step(1, lose_the_number):
        assert begin("rm", folder, tmp_path / "many", "--per_device_train_batch_size", "12") == 2
    assert " and 4 more; training cannot" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs a file system of its own: run as root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("stage", "room"), cases((0,), everywhere=(60_000,)), indirect=["stage"])
def test_a_full_disk_ends_a_run_in_a_sentence_and_with_room_again_it_goes_on(
    stage: str, room: int, whole: dict[str, bytes], folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, filler = small_disk / "run", small_disk / "filler"

    def fill_the_disk(loss: Tensor) -> Tensor:
        for name in ("log.txt", "metrics.jsonl"):  # their last pages have no room either
            with (run / name).open("a") as file:
                file.write("\n" * (-(run / name).stat().st_size % mmap.PAGESIZE if not room else 0))
        with filler.open("wb", buffering=0) as file:
            free = os.statvfs(small_disk)
            file.write(bytes(free.f_bavail * free.f_frsize - room))
        return loss

    with before_step(5, fill_the_disk):
        assert begin(stage, folder, run) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    where = f"{run}/checkpoint-6: the checkpoint could not be written" if room else "not written (No space left on"
    assert where in said
    assert f"then continue from checkpoint-3 with --resume {run}." in said
    status = read_status(run)
    assert (status.state, status.step) == ("failed", 6 if room else 4)
    assert where in status.message
    assert names(run) == {"checkpoint-3"}
    filler.unlink()
    assert resume(run) == 0
    assert learned(run) == whole
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_disk_that_is_full_when_ppo_keeps_its_tokens_is_told_too(
    folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, filler = small_disk / "run", small_disk / "filler"

    def fill_the_disk(loss: Tensor) -> Tensor:
        with filler.open("ab", buffering=0) as file:
            free = os.statvfs(small_disk)
            file.write(bytes(free.f_bavail * free.f_frsize))
        return loss

    with before_step(5, fill_the_disk):
        assert begin("ppo", folder, run, "--inspect_steps", "1") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"error: {run}: not written (No space left on" in said
    assert f"then continue from checkpoint-3 with --resume {run}." in said
    assert (read_status(run).state, names(run)) == ("failed", {"checkpoint-3"})
    assert not list((run / "rollouts").glob("*5*"))


def test_what_needs_more_memory_outside_the_steps_is_told_as_well(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is loaded before the first step, and evaluated after the last."""
    for stage, place in (
        ("rm", "train.rm.new_reward_model"),
        ("rm", "train.rm.normalize_rewards"),
        ("sft", "train.sft.choose"),
        ("dpo", "train.dpo.new_policy"),
        ("ppo", "train.ppo.new_roles"),
    ):
        with patch(place, lambda *args, **options: ask_for_a_petabyte(torch.zeros(()))):
            assert begin(stage, folder, run := tmp_path / place, "--max_steps", "1") == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith(f"error: {NO_MEMORY}")
        assert read_status(run).message.startswith(NO_MEMORY)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.crater),)


@pytest.mark.parametrize("stage", ["rm"], indirect=True)
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_bomb_in_a_checkpoint_does_not_go_off_even_where_its_maker_sealed_it(
    name: str, stopped: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, crater = shutil.copytree(stopped, tmp_path / "run"), tmp_path / "crater"
    torch.save(Bomb(crater), run / "checkpoint-7" / name)
    assert name in damage(run / "checkpoint-7")
    seal(run / "checkpoint-7")
    if name == "training_args.bin":  # not read
        assert resume(run) == 0
        assert learned(run) == whole
    else:
        assert resume(run) == 2
        assert f"error: {run}/checkpoint-7: a file of it holds more than numbers" in capsys.readouterr().err
        assert read_status(run).state == "failed"
    assert not crater.exists()
    torch.load(run / "checkpoint-7" / name, weights_only=False)
    assert crater.exists(), "a live one"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo"], indirect=True)
@pytest.mark.parametrize("name", [STATE, "inside.safetensors"])
def test_a_bomb_in_the_place_of_ppos_state_does_not_go_off(
    name: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, crater = shutil.copytree(stopped, tmp_path / "run"), tmp_path / "crater"
    with (run / "checkpoint-7" / name).open("wb") as file:  # by its name torch would take it for safetensors
        torch.save(Bomb(crater), file)
    edit(run / "checkpoint-7" / "trainer_state.json", inside_step=6)
    seal(run / "checkpoint-7")
    assert resume(run) == 2
    assert f"error: {run}/checkpoint-7: {name} is not what this program writes" in capsys.readouterr().err
    assert read_status(run).state == "failed"
    assert not crater.exists()
    with (run / "checkpoint-7" / name).open("rb") as file:
        torch.load(file, weights_only=False)
    assert crater.exists(), "a live one"


@pytest.mark.parametrize("stage", ["rm"], indirect=True)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "optimizer.bin"])
def test_a_pickle_laid_beside_the_files_of_a_checkpoint_makes_it_damaged(
    name: str, stopped: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(stopped / "checkpoint-7", tmp_path / "checkpoint-7")
    (checkpoint / name).write_bytes(b"")
    assert damage(checkpoint) == f"{name} was not there when it was written"


@pytest.mark.parametrize("stage", ALL, indirect=True)
def test_the_manifest_lists_all_that_a_resume_reads(stopped: Path) -> None:
    listed = json.loads((stopped / "checkpoint-7" / "checkpoint.json").read_text())["files"]
    several = {WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert set(listed) >= {"trainer_state.json"} | ({STATE} if is_ppo(stopped / "checkpoint-7") else several)
