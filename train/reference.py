"""The reference's log-probs: computed once a response, kept in a file, found again by the response's content.

A file is JSON lines: the first says whose log-probs these are, each other one holds a response's key and number. Lines
are only ever added, so that a killed run loses at most the line it was writing. Several runs may write to one file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from data.errors import BadInput
from train.files import exclusive
from train.groups import Group
from train.layouts import Batch, log_probs
from train.policies import reference_of
from train.processes import gathered, is_main, rank, world_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Whose log-probs: they are the same numbers only for the same model, tokenizer and precision."""

    model_sha256: str
    tokenizer_sha256: str
    precision: str
    """float32, bfloat16, or either with 4-bit weights."""

    @property
    def name(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def keys(groups: Sequence[Group]) -> list[str]:
    """One key a response, in order: its prompt's and its own tokens, and which of them are learned."""
    return [
        hashlib.sha256(json.dumps([row, spans]).encode()).hexdigest()[:32]
        for group in groups
        for row, spans in zip(group.rows, group.learned, strict=True)
    ]


class ReferenceLogProbs:
    """Log-probs under the reference, the policy with its adapters off.

    `computed`, `cached`: responses whose number was computed here, or found in the file or in memory. `forwards`: calls
    of the model. Of several processes the main one writes to the file, and counts for all; see `share`.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open or make the file. Raises BadInput where it holds another model's numbers."""
        self.path = path
        self.identity = identity
        self.computed = self.cached = self.forwards = 0
        self._new: dict[str, float] = {}
        self._shared = [0, 0, 0]
        with exclusive(self._lock):
            self._known = _read(path, identity) if path.exists() else {}
        log.info("reference log-probs: %s known in %s", f"{len(self._known):,}", path)

    def of(self, policy: nn.Module, batch: Batch) -> Tensor:
        """The log-probs of a pass's responses, shape (R,), float64 on the CPU. `batch` has their `keys`.

        Where one is missing, the pass is computed as the policy's own will be: at the start both are then equal to the
        last bit.
        """
        names: list[str] = batch["keys"]
        missing = [n for n, key in enumerate(names) if key not in self._known]
        self.cached += len(names) - len(missing)
        if missing:
            self._compute(policy, batch, missing)
        return torch.tensor([self._known[key] for key in names], dtype=torch.float64)

    def _compute(self, policy: nn.Module, batch: Batch, missing: Sequence[int]) -> None:
        with torch.no_grad(), reference_of(policy):
            numbers = log_probs(policy, batch).tolist()
        self.computed += len(missing)
        self.forwards += len(batch["rows"])
        new = {batch["keys"][n]: numbers[n] for n in missing}
        if not all(map(math.isfinite, new.values())):
            raise BadInput(
                "the reference gives a log-prob that is no finite number: the model as it was at the start is broken "
                "for this data. Leave out --bf16, or use another --model."
            )
        self._known |= new
        self._new |= new
        if is_main():
            self._write(new)

    def share(self) -> None:
        """Tell the other processes what was computed since they were told last, and learn theirs. All at once."""
        if world_size() == 1:
            return
        counts = list(self.counts().values())
        own: dict[str, Any] = {"new": self._new, "counts": [n - m for n, m in zip(counts, self._shared, strict=True)]}
        for number, other in enumerate(gathered([own])):
            if number == rank():
                continue
            new = {key: value for key, value in other["new"].items() if key not in self._known}
            self._known |= new
            if is_main() and new:
                self._write(new)
            self.computed, self.cached, self.forwards = (
                n + m for n, m in zip(self.counts().values(), other["counts"], strict=True)
            )
        self._new, self._shared = {}, list(self.counts().values())

    def _write(self, new: Mapping[str, float]) -> None:
        """Add lines to the file."""
        rows: list[Mapping[str, Any]] = [{"key": key, "log_prob": value} for key, value in new.items()]
        with exclusive(self._lock), self.path.open("a+b") as file:
            if not file.tell():  # new, or deleted meanwhile
                rows = [vars(self.identity), *rows]
            elif not _ends_a_line(file):  # another run was killed while it wrote
                file.write(b"\n")
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def counts(self) -> dict[str, int]:
        """For `eval.json`."""
        return {"computed": self.computed, "cached": self.cached, "forwards": self.forwards}


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _read(path: Path, identity: Identity) -> dict[str, float]:
    """What a file holds; lines that a kill cut short are passed over, and counted. Raises BadInput."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(lines[0]) if lines else vars(identity)
    except (ValueError, OSError):
        head = None
    if not isinstance(head, dict):
        raise BadInput(
            f"--reference_cache {path}: this is no file of reference log-probs. Give another name, or delete it."
        )
    _check(path, head, identity)
    found = [_row(line) for line in lines[1:]]
    if None in found:
        log.info("reference log-probs: %d lines of %s are cut short; computed again", found.count(None), path)
    return dict(row for row in found if row is not None)


def _row(line: str) -> tuple[str, float] | None:
    """Key and number of a line, None where it is not whole."""
    try:
        row = json.loads(line)
        return str(row["key"]), float(row["log_prob"])
    except (ValueError, KeyError, TypeError):
        return None


def _check(path: Path, head: Mapping[str, Any], identity: Identity) -> None:
    words = {"model_sha256": "model", "tokenizer_sha256": "tokenizer", "precision": "precision"}
    for name, value in vars(identity).items():
        if head.get(name) != value:
            raise BadInput(
                f"--reference_cache {path}: its log-probs were computed with another {words[name]}, so they are not "
                "this reference's. Give another file, or delete this one."
            )
