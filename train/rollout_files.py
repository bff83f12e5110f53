"""What PPO wrote, scored and learned in one step, token by token: `RUN/rollouts/step-N.parquet`. Free of torch.

One row a response token. Facts about a response are repeated in each of its rows, so that one file holds all of a step
and any tool that knows Parquet reads it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from data.errors import BadInput, NotFound

FOLDER = "rollouts"
SCHEMA = pa.schema(
    [
        pa.field("response", pa.int32(), nullable=False),  # 0 to R-1; the K responses to a prompt follow each other
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # the token's own; joined they are the response
        pa.field("token_id", pa.int32(), nullable=False),
        pa.field("log_prob", pa.float32(), nullable=False),  # nats, by the actor that wrote it
        pa.field("reference_log_prob", pa.float32(), nullable=False),
        pa.field("kl", pa.float32(), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),  # of the token: the penalty, and the score at the last one
        pa.field("value", pa.float32()),  # none without a critic
        pa.field("return", pa.float32()),  # none without a critic
        pa.field("advantage", pa.float32(), nullable=False),
        pa.field("ratio", pa.float32(), nullable=False),  # new to old probability, in the last pass over it
        pa.field("mask", pa.bool_(), nullable=False),  # whether it was learned from
        pa.field("score", pa.float32(), nullable=False),  # of the whole response, before any penalty
        pa.field("gold", pa.float32()),  # the second judge's, where there is one
        pa.field("finished", pa.bool_(), nullable=False),  # ended by EOS
    ]
)
"""The columns, in order."""

_METADATA = ("prompts", "step", "kl_coef")
_NAME = re.compile(r"step-(\d{1,9})\.parquet")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Rollouts:
    """One step's responses. `frame`: a row a token, the columns of `SCHEMA`."""

    frame: pd.DataFrame
    prompts: tuple[tuple[Mapping[str, str], ...], ...]
    """The messages of each prompt, `role` and `content`."""
    step: int
    kl_coef: float
    """Weight of the KL divergence in this step's rewards."""

    @property
    def responses(self) -> int:
        """R."""
        return int(self.frame["response"].max()) + 1

    def tokens(self, response: int) -> list[dict[str, Any]]:
        """The rows of one response, in order; None where a column has nothing."""
        own = self.frame[self.frame["response"] == response].astype(object)
        return [
            {str(name): None if pd.isna(value) else value for name, value in row.items()}
            for row in own.to_dict("records")
        ]

    def numbers(self, column: str) -> list[float]:
        """A column of all the step's tokens."""
        return [float(value) for value in self.frame[column]]

    def overview(self) -> list[dict[str, Any]]:
        """Of each response, in order: `prompt_id`, `score`, `gold`, `finished`, its number of `tokens`, its `kl`."""
        groups = self.frame.groupby("response", sort=True)
        first = groups[["prompt_id", "score", "gold", "finished"]].first().astype(object)
        first = first.assign(tokens=groups.size(), kl=groups["kl"].sum())
        return [
            {str(name): None if pd.isna(value) else value for name, value in row.items()}
            for row in first.to_dict("records")
        ]

    def prompt_of(self, response: int) -> tuple[Mapping[str, str], ...]:
        """The messages that a response answers."""
        return self.prompts[response * len(self.prompts) // self.responses]


def file_of(run: Path, step: int) -> Path:
    """Where a step's rollouts lie."""
    return run / FOLDER / f"step-{step}.parquet"


def steps(run: Path) -> list[int]:
    """The steps whose rollouts were kept, in order."""
    names = [_NAME.fullmatch(path.name) for path in (run / FOLDER).glob("step-*.parquet")]
    return sorted(int(name[1]) for name in names if name)


def write_rollouts(path: Path, columns: Mapping[str, Sequence[Any]], *, metadata: Mapping[str, Any]) -> None:
    """Write one step's rollouts so that no reader, and no crash, meets half a file.

    `columns`: those of `SCHEMA`, equally long; one that may be empty can be None or left out. `metadata`: `prompts` (a
    list of messages for each prompt, in the order of the responses), `step` and `kl_coef`.
    """
    assert set(metadata) == set(_METADATA) and set(columns) <= set(SCHEMA.names)
    given = {name: values for name, values in columns.items() if values is not None}
    count = len(given["response"])
    arrays = [pa.array(given.get(field.name, [None] * count), field.type, from_pandas=False) for field in SCHEMA]
    lacking = [f.name for f, a in zip(SCHEMA, arrays, strict=True) if a.null_count and not f.nullable]
    assert not lacking, f"nothing in {lacking}"
    words = {name: json.dumps(metadata[name], ensure_ascii=False) for name in _METADATA}
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(words))
    assert count and _numbered(table), "responses are numbered 0, 1, 2, … and follow each other"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("wb") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_rollouts(path: Path) -> Rollouts:
    """One step's rollouts, checked. Raises NotFound where there is no file, BadInput for one that is damaged."""
    if not path.is_file():
        raise NotFound(f"{path}: there are no rollouts here. Choose a step that was kept.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise _damaged(path, f"no column '{missing[0]}'")
        said = {name: json.loads((table.schema.metadata or {}).get(name.encode(), "null")) for name in _METADATA}
        step, kl_coef = int(said["step"]), float(said["kl_coef"])
        table = table.select(SCHEMA.names).cast(SCHEMA)
        _check(path, table, said["prompts"])
        frame = table.to_pandas(ignore_metadata=True)
    except (OSError, TypeError, ValueError, pa.ArrowException) as error:  # damaged letters are a ValueError
        raise _damaged(path, _first_line(error)) from None
    return Rollouts(frame=frame, prompts=tuple(map(tuple, said["prompts"])), step=step, kl_coef=kl_coef)


def token_texts(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """Each token's own text, so that all of them joined are the text of `ids`.

    A letter may be spread over several tokens; it then belongs to the last of them, and the others have no text.
    `decode` turns token ids into text, special tokens included.
    """
    pieces = []
    begin = read = 0  # what was shown is the text of `begin` to `read`; decoding them again keeps spaces right
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[begin:read])), decode(list(ids[begin:end]))
        if now.endswith(_INCOMPLETE) and end < len(ids):
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        begin, read = read, end
    return pieces


def visible(text: str) -> str:
    """The text with line breaks marked and everything spelled out that could hide or move what is beside it.

    Control characters could steer a terminal, and marks of direction turn a line around.
    """
    return "".join(_visible(letter) for letter in text)


def visible_lines(text: str) -> str:
    """The same of a longer text, which keeps its line breaks."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _visible(letter: str) -> str:
    if letter in "\n\t":
        return "⏎" if letter == "\n" else "⇥"
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return letter.encode("unicode_escape").decode() if hidden and letter not in _JOINERS else letter


def _check(path: Path, table: pa.Table, prompts: object) -> None:
    """What every reader relies on. Raises BadInput."""
    if not table.num_rows:
        raise _damaged(path, "no row")
    if not _numbered(table):
        raise _damaged(path, "responses that are not numbered 0, 1, 2, …")
    if not (isinstance(prompts, list) and prompts and all(map(_is_conversation, prompts))):
        raise _damaged(path, "prompts that are no lists of messages")


def _numbered(table: pa.Table) -> bool:
    """Whether the responses follow each other without a gap."""
    numbers = table["response"].to_pylist()
    return numbers[0] == 0 and all(after - before in (0, 1) for before, after in pairwise(numbers))


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _damaged(path: Path, found: str) -> BadInput:
    return BadInput(f"{path}: not readable as rollouts ({found}). Delete the file, or choose another step.")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
