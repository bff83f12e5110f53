"""What PPO checks before it learns, and the number formats that it learns in."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.errors import BadInput
from data.records import Message, PromptRecord, Response
from tests.train.adapters import reward_run
from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from tests.train.stopping import ppo_stopped_at
from tests.train.test_ppo import learned, resume, rows_of, train
from train import ppo
from train.chat import encode_prompt, encode_response
from train.experience import Scored
from train.groups import encode_group
from train.layouts import PaddedRows, score_groups
from train.models import load_tokenizer, resolve
from train.ppo_inputs import check_tokens
from train.reward_sources import SharedReward
from train.rewards import load_reward_model
from train.roles import new_roles, read_reward_adapter
from train.rollouts import Prompt, rollouts_of
from train.run import read_status
from train.sampling import Sample


def actor(folder: Path) -> tuple[Any, Any]:
    source = resolve(str(folder), workspace=folder)
    roles = new_roles(source, lora_r=2, lora_alpha=4, dtype=torch.float32, reward=None, critic=False)
    return roles, load_tokenizer(source)


PROMPT = Prompt(None, (5, 6, 7))  # type: ignore[arg-type]


def test_a_pad_token_that_is_the_end_is_refused(tiny: Path) -> None:
    roles, tokenizer = actor(tiny)
    check_tokens(roles, tokenizer, PROMPT, name="tiny")
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(BadInput, match="its pad token is its EOS token"):
        check_tokens(roles, tokenizer, PROMPT, name="tiny")


@pytest.mark.parametrize("how", ["beyond the vocabulary", "never likely"])
def test_a_model_that_cannot_end_a_response_is_refused(how: str, tiny: Path) -> None:
    roles, tokenizer = actor(tiny)
    if how == "never likely":
        with torch.no_grad():
            roles.base.get_output_embeddings().weight[tokenizer.eos_token_id] = math.nan
    else:
        tokenizer.add_special_tokens({"eos_token": "<|beyond|>"})
        roles.model.generation_config.eos_token_id = None
    with pytest.raises(BadInput, match="it can never write one of its stop tokens"):
        check_tokens(roles, tokenizer, PROMPT, name="tiny")


@pytest.mark.parametrize(("off", "expected"), [(2e-3, 2), (5e-4, 0)])
def test_old_and_new_probabilities_that_differ_before_the_first_update_are_refused(
    off: float, expected: int, tiny: Path, ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_little_off(*args: Any, **options: Any) -> Scored:
        scored = score_rollouts(*args, **options)
        return dataclasses.replace(scored, log_probs=torch.where(scored.mask, scored.log_probs - off, 0.0))

    score_rollouts = ppo.score_rollouts
    monkeypatch.setattr(ppo, "score_rollouts", a_little_off)
    assert train(tiny, ranked, tmp_path / "run", "--max_steps", "1") == expected
    if expected:
        status = read_status(tmp_path / "run")
        assert status.state == "failed" and "the ratio of new to old probabilities is off by 0.002" in status.message


def test_a_response_scores_on_the_shared_base_what_its_text_scores(tiny: Path, tmp_path: Path) -> None:
    """One with an end of its own, and one that was cut."""
    source = resolve(str(reward_run(tiny, tmp_path / "rm")), workspace=tmp_path)
    adapter = read_reward_adapter(source)
    roles = new_roles(source, lora_r=2, lora_alpha=4, dtype=torch.float32, reward=adapter, critic=False)
    tokenizer, layout = load_tokenizer(source), PaddedRows(4096)
    record = PromptRecord((Message("user", "Why?"),), (Response("So it is."), Response("No")), id="p")
    start = encode_prompt(tokenizer, record.prompt)
    whole = [encode_response(tokenizer, record.prompt, r.text)[len(start) :] for r in record.responses]
    ended = Sample(record.responses[0].text, finished=True, tokens=len(whole[0]) - 1, ids=tuple(whole[0]))
    cut = Sample(record.responses[1].text, finished=False, tokens=len(whole[1]) - 1, ids=tuple(whole[1][:-1]))
    found = SharedReward(roles, layout, tokenizer.eos_token_id).score(
        rollouts_of([Prompt(record, tuple(start))], [[ended, cut]])
    )
    group = encode_group(record, tokenizer, max_length=200, counts=Counter())
    ((_, expected),) = score_groups(load_reward_model(source, dtype=torch.float32), [group], layout)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("tokens", "warned"), [("1", True), ("200", False)])
def test_responses_without_an_end_are_told_of(
    tokens: str, warned: bool, tiny: Path, ranked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tiny, ranked, tmp_path / "run", "--max_steps", "1", "--max_new_tokens", tokens, "--samples", "2") == 0
    told = [r for r in caplog.records if r.levelno == logging.WARNING and "ended within" in r.message]
    assert bool(told) == warned
    assert warned == (rows_of(tmp_path / "run")[0]["finished"] == 0)


@pytest.mark.parametrize("flags", [["--bf16"], ["--load_in_4bit"], ["--bf16", "--load_in_4bit"]])
def test_other_number_formats_learn_and_are_resumed_to_the_last_bit(flags: list[str], tmp_path: Path) -> None:
    """A block of 4-bit weights holds 64, so the model is a multiple of it wide."""
    config = llama_config(hidden_size=64, intermediate_size=128, initializer_range=0.1)
    model = save_model(config, byte_tokenizer(), tmp_path / "model")
    data = write_rows(tmp_path / "ranked.jsonl", rows())
    flags = [*flags, "--max_steps", "3"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(model, data, whole, *flags) == 0
    measured = rows_of(whole)
    assert measured[0]["kl"] == 0 and all(math.isfinite(value) for row in measured for value in row.values())
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert any(value.abs().max() > 1e-3 for name, value in adapter.items() if "lora_B" in name), "they are 0 at first"

    with ppo_stopped_at(2):
        assert train(model, data, run, *flags) == 143
    assert resume(run) == 0
    assert learned(run) == learned(whole)
