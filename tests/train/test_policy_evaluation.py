"""A language model against another: from the command line to the responses in a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from data.__main__ import main as data_main
from data.importing import read_records
from data.records import write_record
from tests.train.made import rows, write_rows
from train.__main__ import main
from train.command_configs import EvaluateConfig
from train.models import ModelSource, known_warnings
from train.policy_evaluation import _start, in_words

JUDGES = """
def letters(messages, responses):
    return [sum(c.isalpha() for c in r) for r in responses]

def breaks(messages, responses):
    if len(responses) > 2:
        raise OSError("the line is dead")
    return [0.0 for r in responses]
"""
SHORT = ["--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the tiny model writes."""
    folder = tmp_path_factory.mktemp("policies") / "adapter"
    torch.manual_seed(3)
    with known_warnings():
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward(tiny: Path, ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "rm"
    assert main(["rm", "--model", str(tiny), "--data", str(ranked), "--output", str(run), "--max_steps", "2"]) == 0
    return run


@pytest.fixture(autouse=True)
def _judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_judges.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)


def evaluate(model: Path | str, data: Path, *more: str) -> int:
    return main(["evaluate", "--model", str(model), "--data", str(data), *SHORT, *more])


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_a_run_wins_or_loses_against_its_base_and_every_response_is_kept(
    adapter: Path, tiny: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--split", "all", "--samples", "3", "--judge", "some_judges:letters", "--out", str(out), "--json"]
    assert evaluate(adapter, ranked, *flags) == 0
    result = found(capsys)
    records = list(read_records(out))
    assert (result["prompts"], result["samples"], len(records)) == (24, 3, 24)
    assert (result["model"], result["against"], result["judge"]) == (str(adapter), str(tiny), "some_judges:letters")
    scores = []
    for record in records:
        assert [r.model for r in record.responses] == [str(adapter)] * 3 + [str(tiny)] * 3
        own = record.metadata["scores"]
        assert own == [sum(c.isalpha() for c in r.text) for r in record.responses]
        scores.append((own[:3], own[3:]))
    wins = [sum((x > y) + (x == y) / 2 for x in a for y in b) / 9 for a, b in scores]
    assert result["win_rate"] == pytest.approx(sum(wins) / 24)
    assert result["win_rate_interval"][0] < result["win_rate"] < result["win_rate_interval"][1]
    assert result["ties"] == sum(x == y for a, b in scores for x in a for y in b)
    assert result["pairs"] == 24 * 9
    means = [sum(sum(pair[side]) for pair in scores) / 72 for side in (0, 1)]
    assert result["score_difference"] == pytest.approx(means[0] - means[1])
    figures = result["responses"]
    assert [figures[side]["score"] for side in ("model", "against")] == pytest.approx(means)
    assert figures["against"]["best_of_n"] == pytest.approx(sum(max(b) for _, b in scores) / 24)
    written = [record.metadata["generation"] for record in records]
    assert figures["model"]["tokens"] == pytest.approx(sum(sum(w["tokens"][:3]) for w in written) / 72)
    assert figures["against"]["finished"] == pytest.approx(sum(sum(w["finished"][3:]) for w in written) / 72)


def test_the_model_writes_what_generate_writes_and_the_other_has_a_chance_of_its_own(
    adapter: Path, tiny: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, alone = tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    flags = ["--split", "all", "--samples", "2", "--judge", "some_judges:letters", "--out", str(out)]
    assert evaluate(adapter, ranked, *flags, "--batch_size", "5") == 0
    both = [[r.text for r in record.responses] for record in read_records(out)]
    for model, wanted in ((adapter, [own[:2] for own in both]), (tiny, [own[2:] for own in both])):
        samples = "2" if model is adapter else "4"  # the other's responses are the next numbers of the seed
        flags = ["--model", str(model), "--prompts", str(ranked), "--out", str(alone), "--samples", samples, *SHORT]
        assert main(["generate", *flags]) == 0
        assert [[r.text for r in record.responses][-2:] for record in read_records(alone)] == wanted
    capsys.readouterr()


def test_a_model_against_itself_wins_half_exactly(tiny: Path, ranked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--against", str(tiny), "--split", "all", "--judge", "some_judges:letters", "--json"]
    assert evaluate(tiny, ranked, *flags) == 0
    result = found(capsys)
    assert result["win_rate"] == 0.5
    assert result["win_rate_length_controlled"] == pytest.approx(0.5, abs=1e-9)
    assert (result["score_difference"], result["score_difference_interval"]) == (0.0, [0.0, 0.0])


def test_a_reward_model_judges_a_merged_model_against_its_base(
    adapter: Path, tiny: Path, reward: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, out = tmp_path / "merged", tmp_path / "out.jsonl"
    assert main(["merge", "--model", str(adapter), "--output", str(merged)]) == 0
    capsys.readouterr()
    flags = ["--judge", str(reward), "--split", "all", "--samples", "2", "--out", str(out), "--json"]
    assert evaluate(merged, ranked, *flags) == 0
    result = found(capsys)
    assert result["against"] == str(tiny)
    assert result["judge_cut"]["prompts_cut"] == 0
    assert main(["score", "--model", str(reward), "--data", str(out), "--out", str(tmp_path / "s")]) == 0
    scored = [json.loads(line)["scores"] for line in (tmp_path / "s").read_text().splitlines()]
    kept = [record.metadata["scores"] for record in read_records(out)]
    assert [s for own in kept for s in own] == pytest.approx([s for own in scored for s in own], abs=1e-5)
    assert result["responses"]["model"]["score"] == pytest.approx(sum(sum(own[:2]) for own in scored) / 48, abs=1e-5)


def test_prompts_are_held_out_counted_once_and_left_out_where_they_do_not_fit(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text("".join(f"Question {i}\n" for i in (*range(40), 3, 3)) + "y" * 600 + "\n")
    judged = ["--judge", "some_judges:letters", "--samples", "1", "--json"]
    assert evaluate(adapter, data, "--split", "all", *judged) == 0
    result = found(capsys)
    assert result["prompts"] == 40
    assert result["left_out"] == {"repeated": 2, "over_the_limit": 0, "too_long": 1}
    counts = {}
    for split in ("eval", "train"):
        assert evaluate(adapter, data, "--split", split, "--eval_fraction", "0.3", *judged) == 0
        part = found(capsys)
        counts[split] = part["prompts"] + part["left_out"]["too_long"]
    assert counts["eval"] + counts["train"] == 41
    assert 4 <= counts["eval"] <= 20
    assert evaluate(adapter, data, "--split", "all", "--prompts_limit", "5", *judged) == 0
    limited = found(capsys)
    assert (limited["prompts"], limited["left_out"]["over_the_limit"]) == (5, 36)


def test_a_dataset_folder_keeps_its_own_split(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, workspace = write_rows(tmp_path / "rows.jsonl", rows(24)), ["--workspace", str(tmp_path / "w")]
    assert data_main(["import", str(made), "--project", "p", *workspace]) == 0
    folder = tmp_path / "dataset"
    flags = ["--project", "p", "--format", "trl", "--eval-fraction", "0.4", "--out", str(folder)]
    assert data_main(["export", *flags, *workspace]) == 0
    held_out = sum(record.split == "eval" for record in read_records(folder / "rankings.jsonl"))
    capsys.readouterr()
    assert evaluate(adapter, folder, "--judge", "some_judges:letters", "--samples", "1", "--json") == 0
    assert found(capsys)["prompts"] == held_out > 3


def test_responses_outlive_a_judge_that_fails(
    adapter: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--judge", "some_judges:breaks", "--split", "all", "--samples", "2", "--out", str(out)]
    assert evaluate(adapter, ranked, *flags) == 2
    assert "the function raised OSError: the line is dead" in capsys.readouterr().err
    records = list(read_records(out))
    assert [len(r.responses) for r in records] == [4] * 24
    assert "scores" not in records[0].metadata


def test_the_rows_can_be_ranked(adapter: Path, ranked: Path, tmp_path: Path) -> None:
    out, workspace = tmp_path / "out.jsonl", ["--workspace", str(tmp_path / "w")]
    assert evaluate(adapter, ranked, "--judge", "some_judges:letters", "--split", "all", "--out", str(out)) == 0
    rows_read = [write_record(r) for r in read_records(out)]
    assert rows_read == [json.loads(line) for line in out.read_text().splitlines()]
    assert data_main(["import", str(out), "--project", "next", *workspace]) == 0


def test_one_line_of_words(
    adapter: Path, tiny: Path, ranked: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert evaluate(adapter, ranked, "--judge", "some_judges:letters", "--split", "all", "--samples", "2") == 0
    output, log = capsys.readouterr().out, caplog.text
    assert output.count("\n") == 1
    assert output.startswith("win rate 0.")
    assert f"] against {tiny}, at equal length 0." in output
    assert "judged by some_judges:letters on 24 prompts with 2 samples each" in output
    assert f"{adapter} writes 2 responses to each of 24 prompts" in log
    assert "some_judges:letters judges 96 responses" in log


def test_words_for_what_cannot_be_told() -> None:
    figures = {"score": 1.0, "tokens": 5.0, "finished": 0.5}
    result = {
        "win_rate": 0.75,
        "win_rate_interval": (0.6, 0.9),
        "win_rate_length_controlled": None,
        "win_rate_length_controlled_interval": None,
        "longer": 0.5,
        "score_difference": -0.25,
        "score_difference_interval": None,
        "against": "base",
        "judge": "j",
        "prompts": 1,
        "samples": 1,
        "responses": {"model": figures, "against": {**figures, "best_of_n": 2.0}},
    }
    assert in_words(result) == (
        "win rate 0.750 [0.600, 0.900] against base, at equal length unknown, judged by j on 1 prompts with 1 samples "
        "each, score 1.000 against 1.000, difference -0.250, tokens 5.0 against 5.0, finished 50.0% against 50.0%"
    )
    assert "at equal length unknown (a guess: longer in 97% of the pairs), " in in_words({**result, "longer": 0.97})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model", "{adapter}"], "a language model is measured by what it writes, and somebody must judge that"),
        (["--model", "{adapter}", "--judge", "{reward}", "--plot", "p.png"], "--plot p.png: draws a reward model"),
        (["--model", "{tiny}", "--judge", "{reward}"], "a base has no start of its own to win against"),
        (["--model", "{reward}", "--judge", "{reward}"], "--judge {reward}: belongs to the evaluation of a language"),
        (["--model", "{reward}", "--samples", "2"], "--samples 2: belongs to the evaluation of a language model"),
        (["--model", "{adapter}", "--judge", "{tiny}"], "--judge {tiny}: a language model writes responses and scores"),
        (
            ["--model", "{adapter}", "--judge", "{reward}", "--against", "{reward}"],
            "--against {reward}: a reward model",
        ),
        (
            ["--model", "{adapter}", "--judge", "{reward}", "--against", "./no"],
            "--against ./no: there is no such model",
        ),
        (["--model", "{adapter}", "--judge", "{reward}", "--out", "no/such/o"], "there is no folder no/such"),
        (["--model", "{adapter}", "--judge", "{reward}", "--out", "o", "--samples", "26"], "--samples 26 with --out"),
        (["--model", "{adapter}", "--judge", "{reward}", "--temperature", "0"], "--temperature 0 with --samples 4"),
        (["--model", "{adapter}", "--judge", "{reward}", "--eval_fraction", "0"], "no prompt in split 'eval'"),
        (["--model", "{adapter}", "--judge", "{reward}", "--max_new_tokens", "999"], "no prompt leaves room for 999"),
    ],
)
def test_flags_that_do_not_fit_get_a_sentence(
    flags: list[str],
    sentence: str,
    adapter: Path,
    reward: Path,
    tiny: Path,
    ranked: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"adapter": adapter, "reward": reward, "tiny": tiny}
    capsys.readouterr()
    assert main(["evaluate", "--data", str(ranked), *(f.format(**names) for f in flags)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence.format(**names) in error


def test_a_run_of_all_weights_starts_where_it_says_it_began(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny, run / "model")
    (run / "status.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"stage": "sft", "model": str(tiny)}))
    config = EvaluateConfig(model=str(run), data=tmp_path, workspace=tmp_path)
    assert _start(config, ModelSource(str(run), str(run / "model"))).base == str(tiny)


def test_the_start_of_an_adapter_on_a_base_in_4_bits_is_that_base_in_4_bits(tiny: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(model="run", data=tmp_path, workspace=tmp_path)
    source = ModelSource("run", str(tiny), adapter=tmp_path, stage="dpo", load_in_4bit=True)
    assert _start(config, source) == ModelSource(str(tiny), str(tiny), load_in_4bit=True)
