"""Responses written by a model: importable, repeatable, cut at EOS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from data.importing import read_records
from tests.train.made import write_rows
from train.__main__ import main
from train.configs import GenerateConfig
from train.generate import _cut_at_eos, read_prompts, sample_all
from train.models import known_warnings, load_causal, load_tokenizer, resolve


def generate(model: Path, prompts: Path, out: Path, *more: str) -> int:
    flags = ["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--max_new_tokens", "12", *more]
    return main(["generate", *flags])


def test_prompts_come_from_text_lines_and_from_rows_without_responses(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("What is an apple?\n\n苹果是什么？\n", encoding="utf-8")
    native = write_rows(
        tmp_path / "prompts.jsonl",
        [
            {"id": "q1", "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]},
            {"prompt": "苹果是什么？", "metadata": {"lang": "zh"}},
        ],
    )
    for prompts in (text, native):
        assert generate(tiny, prompts, tmp_path / "out.jsonl", "--samples", "3", "--json") == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["prompts"], summary["responses"]) == (2, 6)
        records = list(read_records(tmp_path / "out.jsonl"))
        assert [len(r.responses) for r in records] == [3, 3]
        assert {a.model for r in records for a in r.responses} == {str(tiny)}
        assert records[1].prompt[0].content == "苹果是什么？"
    assert records[0].metadata == {"prompt_id": "q1"}
    assert records[1].metadata["lang"] == "zh"


def test_the_same_seed_writes_the_same_and_another_seed_does_not(tiny: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"prompt": "Longer than that"}])
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert generate(tiny, prompts, tmp_path / name, "--seed", seed, "--samples", "2") == 0
    written = [(tmp_path / name).read_bytes() for name in "abc"]
    assert written[0] == written[1] != written[2]


def test_a_batch_of_unequal_prompts_writes_what_each_alone_would(tiny: Path, tmp_path: Path) -> None:
    """Greedy: left padding, masks and positions must not show."""
    source = resolve(str(tiny), workspace=tmp_path)
    tokenizer, model = load_tokenizer(source), load_causal(source, dtype=torch.float64)
    prompts = [[1, 50, 60], [1, 2, 80, 81, 82, 0, 83], [1] * 20, [0, 0, 70]]
    settings = {"model": str(tiny), "prompts": tmp_path, "out": tmp_path, "samples": 1, "temperature": 0.0}
    config = GenerateConfig(**settings, max_new_tokens=10)
    together = sample_all(model, tokenizer, prompts, config=config)
    alone = [sample_all(model, tokenizer, [p], config=config)[0] for p in prompts]
    assert together == alone


def test_text_ends_at_the_first_eos_and_unfinished_is_told(tokenizer) -> None:
    eos, a = tokenizer.eos_token_id, tokenizer.encode("a")[0]
    assert _cut_at_eos([a, a, eos, a], tokenizer, stops=[eos]) == ("aa", True, 2)
    assert _cut_at_eos([a, a], tokenizer, stops=[eos]) == ("aa", False, 2)
    assert _cut_at_eos([eos], tokenizer, stops=[eos]) == ("", True, 0)


def test_unfinished_and_double_responses_are_counted(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}])
    assert generate(tiny, prompts, tmp_path / "o", "--temperature", "1e-6", "--samples", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["duplicates"] == 2
    assert found["unfinished"] in (0, 3)


def test_an_adapter_of_a_language_model_writes_other_text_than_its_base(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    with known_warnings():
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}])
    for name, model in (("base", tiny), ("adapted", tmp_path / "adapter")):
        assert generate(model, prompts, tmp_path / name, "--temperature", "0", "--samples", "1") == 0
    texts = [next(read_records(tmp_path / n, min_responses=1)).responses[0].text for n in ("base", "adapted")]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("rows", "flags", "sentence"),
    [
        ([{"prompt": "x" * 600}], [], "prompt 1 ('xxxx"),
        ([{"prompt": "Hi"}], ["--temperature", "0"], "--temperature 0 with --samples 4"),
        ([{"prompt": "Hi"}], ["--top_p", "1.5"], "--top_p 1.5: a probability is at most 1"),
        ([{"answer": "Hi"}], [], "prompts.jsonl:1: "),
    ],
)
def test_mistakes_get_a_sentence_and_leave_no_file(
    rows: list[dict], flags: list[str], sentence: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    assert generate(tiny, prompts, tmp_path / "out.jsonl", *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_empty_text_file_is_refused(tmp_path: Path) -> None:
    from data.errors import BadInput

    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(BadInput, match="no prompt; write one a line"):
        list(read_prompts(tmp_path / "p.txt"))
