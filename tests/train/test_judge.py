"""Judges: a function by its import path, each way it can fail, and a reward model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadInput, NotFound, UserError
from data.importing import read_records
from data.records import Message, PromptRecord, Response
from tests.train.made import rows, write_rows
from train.__main__ import main
from train.command_configs import EvaluateConfig
from train.judge import gives_rewards, judge_of
from train.models import resolve

MODULE = """
import math

class Scorer:
    def by_length(self, messages, responses):
        return [len(r) for r in responses]

scorer = Scorer()
number = 3

def good(messages, responses):
    assert messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    return tuple(r.count("!") for r in responses)

def raises(messages, responses):
    return [1 / 0]

def takes_one(responses):
    return [0.0]

def nothing(messages, responses):
    pass

def one_number(messages, responses):
    return 0.5

def too_few(messages, responses):
    return [1.0]

def not_a_number(messages, responses):
    return [1.0, math.nan]

def without_end(messages, responses):
    return [math.inf, 1.0]

def words(messages, responses):
    return ["good", "bad"]

def digits(messages, responses):
    return "12"
"""

RECORD = PromptRecord(
    prompt=(Message("system", "Be kind."), Message("user", "Hi")), responses=(Response("a!"), Response("b!!!"))
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EvaluateConfig]:
    """Settings with a judge; its module `made_judges` can be imported."""
    (tmp_path / "made_judges.py").write_text(MODULE)
    (tmp_path / "broken_judges.py").write_text("raise RuntimeError('half\\nmade')\n")
    (tmp_path / "needy_judges.py").write_text("import a_module_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda judge, **more: EvaluateConfig(model="m", data=tmp_path, judge=judge, workspace=tmp_path, **more)


def test_a_function_gets_the_messages_and_the_texts_and_gives_the_scores(config: Any) -> None:
    assert judge_of(config("made_judges:good"), trial=RECORD).score([RECORD, RECORD]).scores == [[1, 3], [1, 3]]
    assert judge_of(config("made_judges:scorer.by_length"), trial=RECORD).score([RECORD]).scores == [[2, 4]]


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        ("made_judges:raises", "the function raised ZeroDivisionError: division by zero .*made_judges.py:16"),
        (
            "made_judges:takes_one",
            "takes_one.. takes 1 positional argument but 2 were given .* It is called as function",
        ),
        ("made_judges:nothing", "found NoneType, which is no list; there must be 2 finite numbers"),
        ("made_judges:one_number", "found float, which is no list"),
        ("made_judges:too_few", "found 1 scores for 2 responses"),
        ("made_judges:not_a_number", "the score of response 2 is 'nan'"),
        ("made_judges:without_end", "the score of response 1 is 'inf'"),
        ("made_judges:words", "the score of response 1 is 'good'"),
        ("made_judges:digits", "found str, which is no list"),
        ("made_judges:number", "made_judges holds a int; it must be function"),
        ("made_judges:absent", "made_judges holds nothing of that name"),
        ("made_judges:scorer.absent", "made_judges holds nothing of that name"),
        ("missing_judges:good", "there is no module 'missing_judges' here"),
        ("made_judges.inner:good", "there is no module 'made_judges.inner' here"),
        ("needy_judges:good", "there is no module 'a_module_nobody_has' here"),
        ("broken_judges:good", "importing broken_judges raised RuntimeError: half made"),
    ],
)
def test_a_function_that_is_no_judge_is_refused_before_anything_is_written(
    judge: str, sentence: str, config: Any
) -> None:
    with pytest.raises(UserError, match=f"^--judge {judge}.*{sentence}") as caught:
        judge_of(config(judge), trial=RECORD)
    assert "\n" not in str(caught.value)


def test_a_score_that_goes_wrong_later_names_the_prompt(config: Any) -> None:
    judge = judge_of(config("made_judges:good"), trial=RECORD)
    other = PromptRecord(prompt=(Message("user", "Something else"),), responses=RECORD.responses)
    with pytest.raises(BadInput, match=r"prompt 2 \('Something else'\): the function raised AssertionError"):
        judge.score([RECORD, other])


@pytest.mark.parametrize("flags", [{"packing": "tree"}, {"max_length": 64}, {"tokens_per_forward": 7}])
def test_a_function_takes_no_flags_of_a_reward_model(flags: dict, config: Any) -> None:
    with pytest.raises(BadInput, match=f"--{next(iter(flags))} .*belongs to a reward model"):
        judge_of(config("made_judges:good", **flags), trial=RECORD)


def test_a_reward_model_scores_as_the_command_does_and_counts_what_it_cuts(
    tiny: Path, ranked: Path, config: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["rm", "--model", str(tiny), "--data", str(ranked), "--output", str(run), "--max_steps", "2"]) == 0
    data = write_rows(tmp_path / "some.jsonl", [*rows(4)[:3], {"prompt": "x" * 900, "responses": ["a", "b"]}])
    assert main(["score", "--model", str(run), "--data", str(data), "--out", str(tmp_path / "scores")]) == 0
    wanted = [json.loads(line)["scores"] for line in (tmp_path / "scores").read_text().splitlines()]
    judged = judge_of(config(str(run)), trial=RECORD).score(list(read_records(data)))
    assert [score for own in judged.scores for score in own] == pytest.approx([s for own in wanted for s in own])
    assert judged.cut["prompts_cut"] == 1

    merged = tmp_path / "merged"
    assert main(["merge", "--model", str(run), "--output", str(merged)]) == 0
    again = judge_of(config(str(merged)), trial=RECORD).score(list(read_records(data)))
    assert [s for own in again.scores for s in own] == pytest.approx([s for own in wanted for s in own], abs=1e-4)
    for name, expected in ((run, True), (merged, True), (tiny, False)):
        assert gives_rewards(resolve(str(name), workspace=tmp_path)) is expected


def test_what_is_no_reward_model_is_refused(tiny: Path, config: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a language model writes responses and scores none"):
        judge_of(config(str(tiny)), trial=RECORD)
    with pytest.raises(NotFound, match=r"^--judge \./missing: .* A function is named package.module:function"):
        judge_of(config("./missing"), trial=RECORD)
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    found = json.loads((tiny / "config.json").read_text())
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    changes = {"architectures": ["LlamaForSequenceClassification"], **labels}
    (classifier / "config.json").write_text(json.dumps({**found, **changes}))
    (classifier / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match=r"--judge .*: a classifier of 2 labels"):
        judge_of(config(str(classifier)), trial=RECORD)
