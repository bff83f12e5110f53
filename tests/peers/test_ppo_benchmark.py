"""The PPO benchmark: what it refuses, what both sides are given, and that both take the same step."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ppo import PEER_PYTHON, PpoCase, check_peer, fastest, read_case
from benchmarks.ppo_work import Work, make_reward_model
from data.errors import BadInput
from tests.conftest import ROOT
from tests.train.made import byte_tokenizer, llama_config, save_model

PEER = os.environ.get(PEER_PYTHON, "")
needs_peer = pytest.mark.skipif(
    not PEER,
    reason=f"needs TRL 1.12.0 in an environment of its own, its interpreter in {PEER_PYTHON}: "
    "python3 -m venv ../ppo-peer && ../ppo-peer/bin/pip install -r requirements-bench-ppo.txt",
)


def benchmark(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.ppo", "--threads", "1", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With attention dropout, which both sides must turn off."""
    config = llama_config(attention_dropout=0.3, initializer_range=0.3)
    return save_model(config, byte_tokenizer(), tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def work(model: Path, tmp_path: Path) -> Work:
    case = {"prompts": 3, "samples": 2, "p": 10, "r": 6}
    given = {"case": case, "folder": tmp_path, "common": tmp_path, "updates": 2, "threads": 1, "learning_rate": 3e-5}
    return Work({**given, "model": str(model), "workspace": str(tmp_path), "prompts_file": ""})


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts of 1 to 10 bytes each, one of them twice, and a longer one."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(["a" * n for n in range(1, 11)] + ["aa", "b" * 300]) + "\n")
    return path


def test_a_case_is_prompts_samples_and_two_lengths() -> None:
    assert read_case("4,2,128,64") == PpoCase(4, 2, 128, 64)
    for wrong in ("4,128,64", "4,0,128,64", "1,1,128,64", "four"):
        with pytest.raises(argparse.ArgumentTypeError):
            read_case(wrong)


def test_of_sizes_that_are_equally_fast_the_peer_gets_the_smallest() -> None:
    tried = [{"micro_batch": size, "s": seconds} for size, seconds in ((1, 1.3), (2, 1.02), (4, 1.0), (8, 1.01))]
    assert fastest(tried, "micro_batch", seconds="s") == 2
    assert fastest([*tried, {"micro_batch": 16, "s": 0.9}], "micro_batch", seconds="s") == 16


def test_without_the_peers_interpreter_it_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PEER_PYTHON, raising=False)
    ran = benchmark("--json")
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("error: --peer-python is missing") and len(ran.stderr.splitlines()) == 1
    assert "requirements-bench-ppo.txt" in ran.stderr


def test_an_interpreter_without_that_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be run .*requirements-bench-ppo.txt"):
        check_peer(str(tmp_path / "python"))
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\necho 'no module' >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(BadInput, match=r"has no trl.experimental.ppo \(no module\)"):
        check_peer(str(bare))


def test_made_prompts_have_half_to_all_of_the_longest_length_and_no_special_token(work: Work) -> None:
    prompts = work.made_prompts(7)
    assert len(prompts[0]) == 10 and {len(p) for p in prompts} <= set(range(5, 11)) and len(prompts) == 3
    assert not {token for p in prompts for token in p} & set(work.tokenizer.all_special_ids)
    assert work.made_prompts(7) == prompts != work.made_prompts(8)
    assert [len(r) for r in work.made_responses()] == [6] * 6


def test_real_prompts_differ_and_fit(work: Work, prompts_file: Path) -> None:
    work.prompts_file, work.case["p"] = str(prompts_file), 200
    batches = work.real_prompts(3)
    flat = [tuple(ids) for batch in batches for ids in batch]
    assert [len(batch) for batch in batches] == [3, 3, 3] and len(set(flat)) == 9
    assert batches == work.real_prompts(3)
    with pytest.raises(BadInput, match="10 different prompts of at most 200 tokens, and 12 are needed"):
        work.real_prompts(4)


def test_the_peers_whole_reward_model_gives_what_our_adapter_gives(work: Work) -> None:
    from train.models import resolve
    from train.rewards import load_reward_model

    make_reward_model(work)
    ids = torch.tensor([work.made_prompts(0)[0]])
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "ends": torch.tensor([ids.shape[1] - 1])}
    names = (str(work.reward), str(work.classifier))
    sources = [resolve(name, workspace=work.folder) for name in names]
    with torch.no_grad():
        ours, peers = (load_reward_model(source, dtype=torch.float32)(**row) for source in sources)
        plain = load_reward_model(sources[0], dtype=torch.float32)
        with plain.disable_adapter():  # type: ignore[operator]
            without = plain(**row)
    assert ours == pytest.approx(peers, abs=1e-5) and ours != pytest.approx(without, abs=1e-3)


@needs_peer
@pytest.mark.peers
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("critic", ["full", "lora"])
def test_both_trainers_take_the_same_step_and_write_as_much(model: Path, critic: str) -> None:
    flags = ("--cases", "3,2,24,10", "--updates", "2", "--peer-critic", critic, "--json")
    ran = benchmark("--model", str(model), "--peer-python", PEER, *flags)
    assert ran.returncode == 0, ran.stderr
    (case,) = json.loads(ran.stdout.splitlines()[-1])["cases"]
    assert 0 < case["max_grad_rel_err"] < 1e-4
    assert case["parameters_compared"] == 2 * 7 * 2 + 1  # A and B of seven linear layers in two blocks, the value head
    assert case["response_tokens_ours"] == case["response_tokens_peer"] == [3 * 2 * 10] * 3
    assert case["optimizer_steps_peer"] == [4, 4, 4]
    assert case["layout"] == "TreeRows"
    assert case["ratio"] == pytest.approx(case["seconds_peer"] / case["seconds_ours"], rel=0.02)
    assert case["memory_ratio"] == pytest.approx(case["peak_rss_ours"] / case["peak_rss_peer"], abs=1e-3)
    alike = case["peak_rss_ours"] / case["peak_rss_sft_alike"]
    assert case["peak_over_sft_alike"] == pytest.approx(alike, abs=1e-3)
    assert case["peak_over_sft"] == pytest.approx(case["peak_rss_ours"] / case["peak_rss_sft"], abs=1e-3)
    assert min(case["peak_rss_ours"], case["peak_rss_peer"], case["peak_rss_peer_lean"], case["peak_rss_sft"]) > 100e6
    assert len(case["rewards_ours"]) == len(case["rewards_peer"]) == 3
    assert case["reward_start_ours"] == case["rewards_ours"][0] != case["reward_end_ours"]
    assert [row["micro_batch"] for row in case["peer_sweep"]] == [1, 2]
    assert case["peer_versions"]["trl"] == "1.12.0"


@needs_peer
@pytest.mark.peers
@pytest.mark.timeout(1200)
def test_with_real_prompts_responses_end_where_the_model_ends_them(model: Path, prompts_file: Path) -> None:
    flags = ("--cases", "4,2,200,250", "--updates", "1", "--peer-sizes", "2,2", "--json")
    ran = benchmark("--model", str(model), "--peer-python", PEER, "--prompts", str(prompts_file), *flags)
    assert ran.returncode == 0, ran.stderr
    (case,) = json.loads(ran.stdout.splitlines()[-1])["cases"]
    assert case["prompts_file"] == "prompts.txt"
    assert 0 < case["max_grad_rel_err"] < 1e-4
    for side in ("ours", "peer"):
        assert all(8 <= tokens < 4 * 2 * 250 for tokens in case[f"response_tokens_{side}"])
