"""Scores of files: order, single responses, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.made import rows, write_rows
from train.__main__ import main


@pytest.fixture(scope="module")
def run(tiny: Path, ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model, two steps old."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["rm", "--model", str(tiny), "--data", str(ranked), "--output", str(path), "--max_steps", "2"]) == 0
    return path


def test_rows_come_in_order_one_score_a_response_one_response_is_enough(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        {"id": "long", "prompt": "x" * 300, "responses": ["a", "b", "a"]},
        {"id": "one", "prompt": "Hi", "responses": ["hello"]},
        {"prompt": "没有编号", "responses": ["苹果🍎", "b"]},
    ]
    capsys.readouterr()
    data, out = write_rows(tmp_path / "data.jsonl", made), tmp_path / "scores.jsonl"
    assert main(["score", "--model", str(run), "--data", str(data), "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in found[:2]] == ["long", "one"]
    assert len(found[2]["id"]) == 16
    assert [len(r["scores"]) for r in found] == [3, 1, 2]
    assert found[0]["scores"][0] == pytest.approx(found[0]["scores"][2], abs=1e-6)
    assert (summary["prompts"], summary["responses"]) == (3, 6)

    assert main(["score", "--model", str(run), "--data", str(data)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == found


def test_a_long_prompt_is_cut_as_in_training_and_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", [{"prompt": "x" * 900, "responses": ["a", "b"]}])
    capsys.readouterr()
    assert main(["score", "--model", str(run), "--data", str(data), "--out", str(tmp_path / "s"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts_cut"] == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model", "{run}", "--data", "{data}", "--out", "no/such/folder/s"], "there is no folder no/such/folder"),
        (["--model", "{tiny}", "--data", "{data}"], "this model has no score head"),
        (["--model", "{run}", "--data", "missing.jsonl"], "missing.jsonl: there is no such file"),
        (["--model", "./missing", "--data", "{data}"], "--model ./missing: there is no such model folder"),
    ],
)
def test_mistakes_get_a_sentence(
    flags: list[str], sentence: str, run: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows(2))
    assert main(["score", *(f.format(run=run, tiny=tiny, data=data) for f in flags)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
