"""Memory: how much was needed, and a sentence where there was not enough."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from data.errors import BadInput
from train.configs import TrainingConfig

_SHORTAGE = re.compile("can't allocate memory|bad_alloc|out of memory|ALLOC_FAILED")
"""How it is said in a plain RuntimeError: on a CPU, and by libraries below torch."""


@contextmanager
def out_of_memory_told(config: TrainingConfig | Mapping[str, Any]) -> Iterator[None]:
    """Inside, running out of memory ends the run in a sentence with the remedy. Raises BadInput.

    `config`: the run's flags, also as config.json holds them.
    """
    flags = config if isinstance(config, Mapping) else asdict(config)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        raise BadInput(f"out of memory{_asked(str(error))}. {_remedy(flags)}") from error


def peak_memory_mb() -> float:
    """The most memory in use so far, in MB: on the GPU by torch, without one by this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _is_shortage(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_SHORTAGE.search(str(error)))


def _asked(text: str) -> str:
    """How much was asked for where the library tells."""
    found = re.search(r"[Tt]ried to allocate ([0-9.]+ \w+)", text)
    return f" when {found[1]} more were needed" if found else ""


def _remedy(flags: Mapping[str, Any]) -> str:
    """What needs less, of what is not in use yet."""
    less = [f"--tokens_per_forward below {flags['tokens_per_forward']:,}"]
    less += [f"--rollout_batch_size below {flags['rollout_batch_size']:,}"] if "rollout_batch_size" in flags else []
    less += [] if flags["gradient_checkpointing"] else ["--gradient_checkpointing"]
    less += ["no --full"] if flags.get("full") else [] if flags["load_in_4bit"] else ["--load_in_4bit"]
    less += [f"--max_length below {flags['max_length']:,}"]
    return (
        f"Start a new run with {', '.join(less[:-1])} or {less[-1]}; or free memory and continue this one from its "
        "newest checkpoint with --resume."
    )
