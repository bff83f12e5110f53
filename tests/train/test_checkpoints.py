"""A checkpoint is as it was sealed, or known not to be."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data.errors import BadInput
from tests.conftest import ROOT
from train import checkpoints
from train.checkpoints import (
    MANIFEST,
    damage,
    full_disk_told,
    good_to_resume,
    looks_whole,
    new_checkpoint,
    newest_good,
    seal,
)
from train.run import checkpoint_step

FILES = {"adapter.safetensors": b"weights", "nested/optimizer.pt": b"\x00moments", "empty.json": b""}


def fill(folder: Path) -> Path:
    """Three small files."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def sealed(folder: Path) -> Path:
    seal(fill(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sealed(tmp_path / "checkpoint-5")


def names(run: Path) -> set[str]:
    return {p.name for p in run.iterdir()}


def flip(path: Path, bit: int = 3) -> None:
    """Turn one bit around."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_a_sealed_checkpoint_is_undamaged(folder: Path) -> None:
    assert damage(folder) == ""
    assert looks_whole(folder)


def test_every_single_flipped_bit_of_every_file_is_detected(folder: Path) -> None:
    tried = 0
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        for bit in range(path.stat().st_size * 8):
            flip(path, bit)
            assert damage(folder), f"bit {bit} of {path.name}"
            flip(path, bit)
            tried += 1
    assert damage(folder) == ""
    assert tried > 8 * len(b"".join(FILES.values())), "the manifest's own bits were tried too"


def test_a_file_cut_anywhere_missing_or_added_is_detected_without_reading_one(folder: Path) -> None:
    weights = folder / "adapter.safetensors"
    for length in range(len(FILES["adapter.safetensors"])):
        weights.write_bytes(FILES["adapter.safetensors"][:length])
        assert damage(folder) == f"adapter.safetensors has {length} bytes and was written with 7"
        assert not looks_whole(folder)
    weights.write_bytes(b"WEIGHTS")
    assert looks_whole(folder)
    assert damage(folder) == "adapter.safetensors has changed since it was written (its sha256 is another)"
    weights.write_bytes(FILES["adapter.safetensors"])
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert damage(folder) == "pytorch_model.bin was not there when it was written"
    (folder / "pytorch_model.bin").unlink()
    for name, content in FILES.items():
        (folder / name).unlink()
        assert damage(folder) == f"{name} is missing"
        (folder / name).write_bytes(content)
    assert damage(folder) == ""


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "{}", '{"files": [1]}', '{"files": {"a": {"bytes": 1}}}', "\udcff"]
)
def test_a_manifest_that_is_none_is_damage(manifest: str, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(manifest.encode("utf-8", errors="surrogateescape"))
    assert damage(folder) == "its checkpoint.json cannot be read"
    assert not looks_whole(folder)


def test_what_was_never_sealed_is_damage(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert damage(folder) == "it has no checkpoint.json, so it was not written to its end"
    (folder.parent / "checkpoint-6").mkdir()
    assert not looks_whole(folder.parent / "checkpoint-6")
    assert checkpoint_step(folder.parent) == 0


def test_the_newest_good_one_is_used_and_the_log_names_each_newer_one_and_what_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 30, 100):
        sealed(tmp_path / f"checkpoint-{step}")
    assert newest_good(tmp_path) == tmp_path / "checkpoint-100"
    assert caplog.messages == []
    flip(tmp_path / "checkpoint-100" / "adapter.safetensors")
    (tmp_path / "checkpoint-30" / "empty.json").unlink()
    sealed(tmp_path / "checkpoint-later")
    assert newest_good(tmp_path) == tmp_path / "checkpoint-10"
    assert caplog.messages == [
        "checkpoint-100: adapter.safetensors has changed since it was written (its sha256 is another); "
        "checkpoint-10 is used instead",
        "checkpoint-30: empty.json is missing; checkpoint-10 is used instead",
    ]
    assert checkpoint_step(tmp_path) == 100, "the look that reads no file"


def test_without_a_good_one_a_resume_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no checkpoint to continue from\. Start again with a new --output\."):
        good_to_resume(tmp_path)
    for step in (5, 10):
        flip(sealed(tmp_path / f"checkpoint-{step}") / "adapter.safetensors")
    assert newest_good(tmp_path) is None
    with pytest.raises(BadInput, match=r"no checkpoint can be used \(checkpoint-10: adapter.* checkpoint-5: adapter"):
        good_to_resume(tmp_path)


def test_the_older_ones_go_only_once_the_new_one_is_sealed(tmp_path: Path) -> None:
    for step in (5, 10):
        sealed(tmp_path / f"checkpoint-{step}")
    with new_checkpoint(tmp_path / "checkpoint-15"):
        fill(tmp_path / "checkpoint-15")
        assert names(tmp_path) == {"checkpoint-5", "checkpoint-10", "checkpoint-15"}
        assert checkpoint_step(tmp_path) == 10
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-15"}
    assert newest_good(tmp_path) == tmp_path / "checkpoint-15"


def test_what_a_run_left_after_the_step_it_went_back_to_takes_no_place_of_a_good_one(tmp_path: Path) -> None:
    """Else a kill in the middle of the next save could leave no good one at all."""
    for step in (5, 10, 11):
        sealed(tmp_path / f"checkpoint-{step}")
    flip(tmp_path / "checkpoint-11" / "adapter.safetensors")
    fill(tmp_path / "checkpoint-15")
    flip(sealed(tmp_path / "checkpoint-20") / "adapter.safetensors")
    with new_checkpoint(tmp_path / "checkpoint-12"):
        fill(tmp_path / "checkpoint-12")
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-12"}


def test_a_folder_left_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    stale = sealed(tmp_path / "checkpoint-5")
    with new_checkpoint(stale):
        stale.mkdir()
        (stale / "weights").write_bytes(b"new")
    assert names(stale) == {"weights", MANIFEST}
    assert damage(stale) == ""


KILLED = """
import os, signal, sys
from pathlib import Path
from train.checkpoints import new_checkpoint
left, run = int(sys.argv[1]), Path(sys.argv[2])
def dies(real):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
for name in ("fsync", "rename", "replace", "rmdir", "unlink"):
    setattr(os, name, dies(getattr(os, name)))
with new_checkpoint(run / "checkpoint-15"):
    (run / "checkpoint-15").mkdir()
    for name in ("weights", "optimizer.pt"):
        (run / "checkpoint-15" / name).write_bytes(b"new")
"""


def test_a_kill_at_any_call_that_changes_the_disk_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    codes, newest = [], []
    for calls in range(40):
        run = tmp_path / str(calls)
        for step in (5, 10):
            sealed(run / f"checkpoint-{step}")
        codes.append(subprocess.run([sys.executable, "-c", KILLED, str(calls), str(run)], cwd=ROOT).returncode)
        good = newest_good(run)
        assert good is not None, f"killed after {calls} calls"
        newest.append(good.name)
        if codes[-1] == 0:
            break
    assert codes[-1] == 0 and set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 8
    assert newest == sorted(newest), "once the new one is sealed it is used"
    assert (newest[0], newest[-2]) == ("checkpoint-10", "checkpoint-15")


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses to write more than 20,000 bytes into a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_plain(folder: Path) -> None:
    (folder / "trainer_state.json").write_bytes(bytes(100_000))


def write_safetensors(folder: Path) -> None:
    save_file({"weights": torch.zeros(100_000)}, folder / "adapter_model.safetensors")


def write_pickle(folder: Path) -> None:
    torch.save({"moments": torch.zeros(100_000)}, folder / "optimizer.pt")


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """A small file first, then what `write` makes of it."""
    with new_checkpoint(folder):
        folder.mkdir()
        (folder / "README.md").write_text("written")
        write(folder)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_plain, "File too large"),
        (write_safetensors, "File too large"),
        (write_pickle, "the disk took only a part of it"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_one_before_stays(
    write: Callable[[Path], None], reason: str, small_files: None, tmp_path: Path
) -> None:
    for step in (5, 10):
        sealed(tmp_path / f"checkpoint-{step}")
    folder = tmp_path / "checkpoint-15"
    with pytest.raises(BadInput) as told:
        write_checkpoint(folder, write)
    assert str(told.value) == (
        f"{folder}: the checkpoint could not be written ({reason}). Make room on the disk (or make it writable), then "
        f"continue from checkpoint-10 with --resume {tmp_path}."
    )
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-10"}
    assert newest_good(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shapes differ"), KeyboardInterrupt()])
def test_an_error_of_another_kind_goes_on_as_it_is_and_leaves_nothing_behind(
    error: BaseException, tmp_path: Path
) -> None:
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        write_checkpoint(tmp_path / "checkpoint-5", fail)
    assert names(tmp_path) == set()


def test_a_disk_that_takes_no_more_is_told_and_other_errors_are_not(small_files: None, tmp_path: Path) -> None:
    sentence = (
        r"run: not written \(File too large\)\. Make room on the disk .*, then start again with a new --output\.$"
    )
    with pytest.raises(BadInput, match=sentence), full_disk_told(tmp_path / "run"):
        (tmp_path / "metrics").write_bytes(bytes(30_000))
    with pytest.raises(FileNotFoundError), full_disk_told(tmp_path):
        (tmp_path / "gone").read_bytes()


def test_data_is_on_the_disk_before_the_manifest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    seal(fill(tmp_path / "checkpoint-5"))
    assert set(order[:3]) == {Path(name).name for name in FILES}
    assert order[3].startswith(f".{MANIFEST}")
    assert order[4:] == ["checkpoint-5", tmp_path.name]
    assert set(json.loads((tmp_path / "checkpoint-5" / MANIFEST).read_text())["files"]) == set(FILES)
