"""Rollouts in files: what was written is what is read, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import BadInput, NotFound
from tests.train.made import byte_tokenizer
from tests.train.made_rollouts import add_rollouts, columns, metadata
from train.rollout_files import SCHEMA, file_of, read_rollouts, steps, token_texts, visible, write_rollouts


def rewritten(path: Path, **changes: Any) -> Path:
    """The file again with other columns or metadata, as another program might leave it."""
    table = pq.read_table(path)
    kept = {name: table[name] for name in table.column_names}
    words = dict(table.schema.metadata)
    for name, value in changes.items():
        if name in ("prompts", "step", "kl_coef"):
            words[name.encode()] = value.encode()
        elif value is None:
            del kept[name]
        else:
            kept[name] = value
    pq.write_table(pa.table(kept).replace_schema_metadata(words), path)
    return path


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    made = columns()
    write_rollouts(tmp_path / "step-3.parquet", made, metadata=metadata(step=3))
    found = read_rollouts(tmp_path / "step-3.parquet")
    assert list(found.frame.columns) == SCHEMA.names
    for name in SCHEMA.names:
        exact = np.asarray(made[name], dtype=np.float32) if pa.types.is_float32(SCHEMA.field(name).type) else made[name]
        assert list(found.frame[name]) == list(exact), name
    assert (found.step, found.kl_coef, found.responses) == (3, 0.05, 8)
    assert [dict(m) for m in found.prompts[1]] == metadata()["prompts"][1]


def test_numpy_columns_are_written_as_lists_are(tmp_path: Path) -> None:
    lists = columns()
    arrays = {
        name: np.asarray(values) if name not in ("text", "prompt_id") else values for name, values in lists.items()
    }
    for name, made in (("a", lists), ("b", arrays)):
        write_rollouts(tmp_path / name, made, metadata=metadata())
    pd.testing.assert_frame_equal(*(read_rollouts(tmp_path / name).frame for name in ("a", "b")))


def test_any_tool_that_reads_parquet_reads_it(tmp_path: Path) -> None:
    path = add_rollouts(tmp_path, 2)
    frame = pd.read_parquet(path, columns=["response", "advantage"])
    assert len(frame) == len(read_rollouts(path).frame)
    assert pq.read_schema(path).equals(SCHEMA)


def test_a_run_without_critic_or_second_judge_has_none_of_their_numbers(tmp_path: Path) -> None:
    add_rollouts(tmp_path, 1, critic=False, gold=False)
    tokens = read_rollouts(file_of(tmp_path, 1)).tokens(0)
    assert {tokens[0][name] for name in ("value", "return", "gold")} == {None}
    assert tokens[0]["advantage"] is not None
    without = {name: values for name, values in columns().items() if name not in ("value", "return", "gold")}
    write_rollouts(tmp_path / "left-out", without, metadata=metadata())
    assert read_rollouts(tmp_path / "left-out").tokens(0)[0]["value"] is None


def test_a_response_is_found_with_its_prompt_and_its_text(tmp_path: Path) -> None:
    found = read_rollouts(add_rollouts(tmp_path, 1, prompts=3, samples=4))
    assert found.responses == 12
    assert [found.prompt_of(i)[0]["content"] for i in (0, 3, 4, 11)] == [
        metadata(3)["prompts"][n][0]["content"] for n in (0, 0, 1, 2)
    ]
    made = columns(3, samples=4, seed=1)
    joined = "".join(t for t, r in zip(made["text"], made["response"], strict=True) if r == 5)
    assert "".join(token["text"] for token in found.tokens(5)) == joined
    assert {token["prompt_id"] for token in found.tokens(5)} == {"p1"}


def test_each_response_is_summed_up(tmp_path: Path) -> None:
    found = read_rollouts(add_rollouts(tmp_path, 1, gold=False))
    rows = found.overview()
    assert [row["prompt_id"] for row in rows] == [f"p{i // 2}" for i in range(8)]
    assert [row["finished"] for row in rows] == [i % 3 != 2 for i in range(8)]
    for number, row in enumerate(rows):
        tokens = found.tokens(number)
        assert (row["tokens"], row["score"], row["gold"]) == (len(tokens), tokens[0]["score"], None)
        assert row["kl"] == pytest.approx(sum(t["kl"] for t in tokens), abs=1e-5)


def test_the_steps_that_were_kept_are_listed_in_order(tmp_path: Path) -> None:
    assert steps(tmp_path) == []
    for step in (10, 2, 1):
        add_rollouts(tmp_path, step)
    for odd in ("step-x.parquet", ".step-5.parquet.abcd.tmp", "step-7.parquet.old"):
        (tmp_path / "rollouts" / odd).write_text("")
    assert steps(tmp_path) == [1, 2, 10]


def test_a_crash_while_writing_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = add_rollouts(tmp_path, 1)
    before = path.read_bytes()

    def half(table: object, file: Any, **options: object) -> None:
        file.write(b"PAR1 and no more")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="no space"):
        add_rollouts(tmp_path, 1, seed=9)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"response": [0, 2]}, "numbered"),
        ({"response": [1, 1]}, "numbered"),
        ({"log_prob": None}, "nothing in"),
    ],
)
def test_what_would_not_be_readable_is_not_written(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made = {name: values[:2] for name, values in columns().items()} | change
    with pytest.raises(AssertionError, match=words):
        write_rollouts(tmp_path / "x.parquet", made, metadata=metadata())
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are no rollouts here"):
        read_rollouts(tmp_path / "step-1.parquet")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path: Path, keep: float) -> None:
    path = add_rollouts(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(
        BadInput, match=r"step-1\.parquet: not readable as rollouts \(.*\)\. Delete the file"
    ) as refused:
        read_rollouts(path)
    assert "\n" not in str(refused.value)


def test_changed_bytes_are_found_and_never_come_out_as_a_traceback(tmp_path: Path) -> None:
    path = add_rollouts(tmp_path, 1)
    whole, sound = path.read_bytes(), read_rollouts(path).frame
    refused = 0
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read_rollouts(path).frame
        except BadInput as error:
            assert "not readable as rollouts" in str(error)
            refused += 1
        else:
            pd.testing.assert_frame_equal(found, sound)  # the byte was none of the numbers
    assert refused > len(whole) / 97 / 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": None}, "no column 'ratio'"),
        ({"ratio": pa.array(["a lot"])}, "a lot"),
        ({"advantage": pa.array([None], pa.float32())}, "null"),
        ({"response": pa.array([4], pa.int32())}, "numbered"),
        ({"prompts": "[]"}, "prompts that are no lists of messages"),
        ({"prompts": '[["hello"]]'}, "prompts that are no lists of messages"),
        ({"prompts": '[[{"role": "user"}]]'}, "prompts that are no lists of messages"),
        ({"prompts": "{"}, "Expecting"),
        ({"step": '"x"'}, "x"),
        ({"kl_coef": "null"}, "NoneType"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_rollouts(tmp_path / "f", {name: values[:1] for name, values in columns().items()}, metadata=metadata())
    with pytest.raises(BadInput, match=words):
        read_rollouts(rewritten(tmp_path / "f", **changes))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(json.dumps({"a": 1}))
    with pytest.raises(BadInput, match="not readable as rollouts"):
        read_rollouts(tmp_path / "f")
    pq.write_table(pa.table({"a": []}), tmp_path / "f")
    with pytest.raises(BadInput, match="no column 'response'"):
        read_rollouts(tmp_path / "f")


def test_texts_of_tokens_join_to_the_response_where_letters_are_split() -> None:
    tokenizer = byte_tokenizer()
    text = "Grüße, 猫 👍🏽!"
    ids = [*tokenizer.encode(text), 2]
    pieces = token_texts(tokenizer.decode, ids)
    assert "".join(pieces) == text + "<|im_end|>"
    assert len(pieces) == len(ids)
    assert pieces[:4] == ["G", "r", "", "ü"]
    assert pieces.count("") == len(text.encode()) - len(text)


def test_a_response_cut_within_a_letter_still_joins() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a猫")[:-1]
    pieces = token_texts(tokenizer.decode, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[:2] == ["a", ""]
    assert token_texts(tokenizer.decode, []) == []


def test_a_tokenizer_that_drops_the_first_space_keeps_those_between_words() -> None:
    words = {1: "▁the", 2: "▁cat", 3: "s"}

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert token_texts(decode, [1, 2, 3, 1]) == ["the", " cat", "s", " the"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("a\n\tb", "a⏎⇥b"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\r\u2028\ufeff\u200b", "\\r\\u2028\\ufeff\\u200b"),
        ("猫é👩‍💻", "猫é👩‍💻"),
    ],
)
def test_nothing_in_a_token_can_hide_or_steer(text: str, shown: str) -> None:
    assert visible(text) == shown
