"""A sentence where memory is not enough."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.errors import BadInput
from train.configs import RmConfig, SftConfig
from train.memory import out_of_memory_told, peak_memory_mb

RM = RmConfig(model="m", data=Path("d"), output=Path("o"))


def allocate() -> None:
    torch.empty(2**50, dtype=torch.uint8)


def allocate_in_python() -> None:
    bytearray(2**60)


def allocate_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of …")


def ask_a_library() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(
    ("use", "begins"),
    [
        (allocate, "out of memory when 1125899906842624 bytes more were needed. Start a new run with"),
        (allocate_in_python, "out of memory. Start a new run with"),
        (allocate_on_a_gpu, "out of memory when 2.50 GiB more were needed. Start"),
        (ask_a_library, "out of memory. Start"),
    ],
)
@pytest.mark.parametrize("config", [RM, asdict(RM)], ids=["config", "config.json"])
def test_every_way_to_run_out_of_memory_is_told_with_the_remedy(use: object, begins: str, config: object) -> None:
    assert callable(use)
    with pytest.raises(BadInput) as told, out_of_memory_told(config):  # type: ignore[arg-type]
        use()
    assert str(told.value).startswith(begins)
    assert str(told.value).endswith(
        "with --tokens_per_forward below 2,048, --gradient_checkpointing, --load_in_4bit or --max_length below 1,024; "
        "or free memory and continue this one from its newest checkpoint with --resume."
    )


def test_the_remedy_leaves_out_what_is_in_use_and_cannot_be() -> None:
    config = RmConfig(model="m", data=Path("d"), output=Path("o"), gradient_checkpointing=True, load_in_4bit=True)
    with (
        pytest.raises(BadInput, match="with --tokens_per_forward below 2,048 or --max_length"),
        out_of_memory_told(config),
    ):
        allocate_in_python()
    whole = SftConfig(model="m", data=Path("d"), output=Path("o"), full=True)
    with (
        pytest.raises(BadInput, match="--gradient_checkpointing, no --full or --max_length"),
        out_of_memory_told(whole),
    ):
        allocate_in_python()


def test_other_errors_go_on_as_they_are() -> None:
    for error in (RuntimeError("shapes differ"), ValueError("out of memory")):
        with pytest.raises(type(error)), out_of_memory_told(RM):
            raise error


def test_the_peak_is_at_least_what_is_held() -> None:
    before = peak_memory_mb()
    held = torch.ones(
        int((before + 50) * 1e6), dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu"
    )
    assert peak_memory_mb() >= held.numel() / 1e6
    assert peak_memory_mb() < 4 * before + 500, "megabytes, neither bytes nor kilobytes"
