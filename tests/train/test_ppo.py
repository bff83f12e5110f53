"""`python -m train ppo` on tiny models: it learns, it is exact after a stop, and it says what is wrong."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.records import Message, PromptRecord
from tests.train import text_rewards
from tests.train.adapters import edit, reward_run
from tests.train.made import byte_tokenizer, llama_config, rows, save_model, write_rows
from tests.train.stopping import ppo_stopped_at
from train import judge
from train.__main__ import main
from train.checkpoints import damage
from train.models import device, known_warnings
from train.ppo_config import PpoConfig
from train.ppo_inputs import sized
from train.rollout_files import file_of, read_rollouts, steps
from train.rollouts import Prompt
from train.run import checkpoint_step, read_evaluation, read_metrics, read_status

LETTERS = "tests.train.text_rewards:letters"
SETTINGS = {
    "reward": LETTERS,
    "learning_rate": "1e-2",
    "lora_r": "4",
    "max_new_tokens": "12",
    "per_device_train_batch_size": "4",
    "samples": "4",
    "num_ppo_epochs": "2",
    "max_steps": "6",
    "save_steps": "2",
    "eval_fraction": "0.2",
    "eval_prompts": "4",
    "kl_coef": "0.01",
}
AT_A_TIME = 512 if device().type == "cpu" else 1024
"""Tokens, where the prompts are short."""
TIMES = ("seconds", "tokens_per_s", "rollout_tokens_per_s", "scoring_tokens_per_s", "update_tokens_per_s")


def train(model: Path, data: Path, output: Path, *flags: str) -> int:
    """Extra flags come last, and the last word on a setting counts."""
    known = [text for name, value in SETTINGS.items() for text in (f"--{name}", value)]
    workspace = ["--workspace", str(output.parent)]
    return main(
        ["ppo", "--model", str(model), "--data", str(data), "--output", str(output), *workspace, *known, *flags]
    )


def resume(run: Path) -> int:
    return main(["ppo", "--resume", str(run)])


def learned(run: Path) -> dict[str, bytes]:
    names = ("adapter/adapter_model.safetensors", "critic/adapter_model.safetensors", "critic/value_head.safetensors")
    return {name: (run / name).read_bytes() for name in names}


def curve(run: Path) -> list[dict[str, float]]:
    left_out = {*TIMES, "peak_memory_mb"}
    return [{k: v for k, v in row.items() if k not in left_out} for row in read_metrics(run)]


def rows_of(run: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(run) if "loss" in row]


def evaluation_of(run: Path) -> dict[str, Any]:
    found = read_evaluation(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tiny: Path, ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ppo") / "whole"
    assert train(tiny, ranked, run, "--max_steps", "6") == 0
    return run


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_the_reward_rises(advantage: str, tiny: Path, ranked: Path, tmp_path: Path) -> None:
    flags = ["--advantage", advantage, "--max_steps", "30", "--samples", "8", "--num_ppo_epochs", "4"]
    assert train(tiny, ranked, tmp_path / "run", *flags) == 0
    found = evaluation_of(tmp_path / "run")["eval"]
    assert found["reward"] > found["start"]["reward"] + 2
    assert found["start"]["kl"] == 0 < found["kl"]
    measured = rows_of(tmp_path / "run")
    assert ("value_loss" in measured[0]) == (advantage == "gae")
    assert measured[-1]["reward"] > measured[0]["reward"] + 2


def test_a_run_leaves_all_that_is_promised(whole: Path) -> None:
    left = {p.name for p in whole.iterdir()}
    promised = {"config.json", "status.json", "metrics.jsonl", "log.txt", "adapter", "critic", "eval.json", "README.md"}
    assert promised | {"curves.png", "rollouts", "checkpoint-4", "checkpoint-6"} <= left
    assert read_status(whole).state == "done"
    assert steps(whole) == [1, 2, 3, 4, 5, 6]
    assert all(not damage(whole / f"checkpoint-{n}") for n in (4, 6))
    measured = read_metrics(whole)
    assert [row["step"] for row in measured] == [0, 1, 2, 3, 4, 5, 6, 6]
    expected = {"reward", "kl", "kl_coef", "entropy", "clip_fraction", "approx_kl", "explained_variance", "value_loss"}
    expected |= {"finished", "tokens", "repetition", "empty", "learning_rate", "grad_norm", "peak_memory_mb", *TIMES}
    assert all(expected <= row.keys() for row in measured[1:-1])
    found = evaluation_of(whole)
    assert found["roles"] == {"reward": "function", "critic": "fresh"}
    assert len(found["samples"]) == 4 and found["samples"][0].keys() == {
        "prompt",
        "start",
        "start_reward",
        "end",
        "end_reward",
    }
    assert "before" in (whole / "README.md").read_text()


def test_before_the_first_update_actor_and_reference_are_one(whole: Path) -> None:
    first = rows_of(whole)[0]
    assert first["kl"] == 0.0
    frame = read_rollouts(file_of(whole, 1)).frame
    assert (frame["log_prob"] == frame["reference_log_prob"]).all() and (frame["kl"] == 0).all()


def test_the_first_pass_of_a_step_has_a_ratio_of_1(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    """In one pass nothing was learned before it: the ratio is 1 to the rounding, and nothing is clipped."""
    assert train(tiny, ranked, tmp_path / "run", "--num_ppo_epochs", "1", "--max_steps", "3") == 0
    for step in (1, 2, 3):
        frame = read_rollouts(file_of(tmp_path / "run", step)).frame
        assert (frame["ratio"] - 1).abs().max() < 1e-5
    assert all(row["clip_fraction"] == 0 and abs(row["approx_kl"]) < 1e-8 for row in rows_of(tmp_path / "run"))


def test_the_inspection_file_adds_up(whole: Path) -> None:
    """Each token's numbers, from each other: the penalty, the score at the last token, returns, whitened advantages."""
    found = read_rollouts(file_of(whole, 3))
    frame = found.frame
    assert found.responses == 16
    assert (frame["kl"] - (frame["log_prob"] - frame["reference_log_prob"])).abs().max() < 1e-5
    last = frame.groupby("response").tail(1)
    expected = -found.kl_coef * frame["kl"].astype("float64")
    expected[last.index] += last["score"] - 1.0 * ~last["finished"].astype(bool)
    assert (frame["reward"] - expected).abs().max() < 1e-4
    assert abs(frame["advantage"].mean()) < 1e-5 and abs(frame["advantage"].std(ddof=0) - 1) < 1e-3
    advantages = frame["return"] - frame["value"]
    whitened = (advantages - advantages.mean()) / advantages.std(ddof=0)
    assert (whitened - frame["advantage"]).abs().max() < 1e-3
    assert (frame["ratio"] != 1).any()


def test_the_text_of_the_tokens_is_what_was_scored(whole: Path) -> None:
    from tests.train.text_rewards import letters

    found = read_rollouts(file_of(whole, 2))
    for number, own in found.frame.groupby("response"):
        text = "".join(own["text"]).replace("<|im_end|>", "").strip().replace("\x00", "")
        assert letters([], [text])[0] == pytest.approx(own["score"].iloc[0], abs=1e-4), number


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_a_stopped_and_resumed_run_ends_like_one_left_alone(
    step: int, whole: Path, tiny: Path, ranked: Path, tmp_path: Path
) -> None:
    """Stopped while it learns, after `step` complete steps: actor, critic, metrics and rollouts to the last bit."""
    run = tmp_path / "run"
    with ppo_stopped_at(step):
        assert train(tiny, ranked, run) == 143
    assert read_status(run).state == "stopped"
    assert checkpoint_step(run) == step
    if not step:
        return
    assert resume(run) == 0
    assert learned(run) == learned(whole)
    assert curve(run) == curve(whole)
    assert evaluation_of(run)["eval"] == evaluation_of(whole)["eval"]
    for number in steps(whole):
        assert read_rollouts(file_of(run, number)).frame.equals(read_rollouts(file_of(whole, number)).frame)


def test_resuming_goes_back_to_the_newest_good_checkpoint_and_says_so(
    whole: Path, tiny: Path, ranked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    with ppo_stopped_at(5):
        train(tiny, ranked, run)
    state = run / "checkpoint-5" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    assert resume(run) == 0
    assert "checkpoint-5: state.safetensors has changed" in caplog.text and "checkpoint-4 is used" in caplog.text
    assert learned(run) == learned(whole) and curve(run) == curve(whole)


def test_the_adapter_is_the_actor_in_plain_peft(whole: Path, tiny: Path) -> None:
    """Its log-probs of what it wrote at the end are those that the library computes."""
    tokenizer = AutoTokenizer.from_pretrained(whole / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with known_warnings():
        model = PeftModel.from_pretrained(base, str(whole / "adapter")).eval()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    state = load_file(whole / "checkpoint-6" / "state.safetensors")
    names = [n for n in state if n.startswith("model.") and ".actor." in n]
    own = dict(model.named_parameters())
    assert names
    for name in names:
        assert torch.equal(state[name], own[name.removeprefix("model.").replace(".actor.", ".default.")])


def test_a_reward_model_on_the_same_base_shares_it(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    reward = reward_run(tiny, tmp_path / "rm")
    edit(reward / "config.json", model=str(tiny))
    assert train(tiny, ranked, tmp_path / "run", "--reward", str(reward), "--max_steps", "2") == 0
    found = evaluation_of(tmp_path / "run")
    assert found["roles"] == {"reward": "shared base", "critic": "copy of reward"}


def test_a_reward_model_on_another_base_is_a_model_of_its_own_and_said_so(
    tiny: Path, ranked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_model(llama_config(hidden_size=16, initializer_range=0.3), byte_tokenizer(), tmp_path / "other")
    reward = reward_run(other, tmp_path / "rm")
    caplog.set_level("INFO")
    with patch.object(judge, "choose", side_effect=judge.choose) as chosen:
        assert train(tiny, ranked, tmp_path / "run", "--reward", str(reward), "--max_steps", "2") == 0
    assert {call.kwargs["tokens_per_forward"] for call in chosen.call_args_list} == {AT_A_TIME}, "what the run has"
    assert "loaded as a model of its own, with the memory of a second base" in caplog.text
    assert evaluation_of(tmp_path / "run")["roles"] == {"reward": "separate model", "critic": "fresh"}
    assert [row["reward_cut"] for row in rows_of(tmp_path / "run")] == [0, 0]


def test_what_a_reward_model_of_its_own_does_not_read_is_counted(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    reward = reward_run(save_model(llama_config(hidden_size=16), byte_tokenizer(), tmp_path / "other"), tmp_path / "rm")
    edit(reward / "config.json", max_length=16)
    assert train(tiny, ranked, tmp_path / "run", "--reward", str(reward), "--max_steps", "1") == 0
    assert rows_of(tmp_path / "run")[0]["reward_cut"] >= 4, "every prompt at least"


def test_gold_is_measured_and_never_learned_from(tiny: Path, ranked: Path, whole: Path, tmp_path: Path) -> None:
    assert train(tiny, ranked, tmp_path / "run", "--gold", "tests.train.text_rewards:words") == 0
    assert learned(tmp_path / "run") == learned(whole)
    assert all("gold" in row for row in rows_of(tmp_path / "run"))
    assert evaluation_of(tmp_path / "run")["eval"]["gold"] > 0


def test_minibatches_and_small_forwards_add_up(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    """The same step in passes of a few tokens: one gradient, to the rounding."""
    flags = ["--max_steps", "1", "--save_steps", "1"]
    for name, more in (("large", []), ("small", ["--tokens_per_forward", "30"]), ("padded", ["--packing", "padded"])):
        assert train(tiny, ranked, tmp_path / name, *flags, *more) == 0
    states = [load_file(tmp_path / n / "checkpoint-1" / "state.safetensors") for n in ("large", "small", "padded")]
    for other in states[1:]:
        for name in (n for n in states[0] if n.endswith("exp_avg")):
            torch.testing.assert_close(other[name], states[0][name], rtol=1e-3, atol=1e-6)


def test_without_a_penalty_the_alarm_goes_off_and_with_one_the_policy_stays_near(
    tiny: Path, ranked: Path, tmp_path: Path
) -> None:
    """Over-optimisation, and the usual remedy."""
    flags = ["--max_steps", "40", "--learning_rate", "4e-3", "--max_new_tokens", "24", "--samples", "8"]
    found = {}
    for coef in ("0", "3"):
        assert train(tiny, ranked, tmp_path / coef, *flags, "--kl_coef", coef, "--stop_on_alarm") == 0
        found[coef] = evaluation_of(tmp_path / coef)
    alarm, status = found["0"]["alarm"], read_status(tmp_path / "0")
    assert alarm["step"] == status.step < 40 and alarm["stopped"]
    assert "nats a response from the reference (the alarm is set to 20)" in alarm["message"] == status.message
    assert rows_of(tmp_path / "0")[-1]["alarm"] == 1.0
    assert found["0"]["eval"]["kl"] > 8
    assert found["3"]["alarm"]["step"] is None and read_status(tmp_path / "3").step == 40
    assert found["3"]["eval"]["kl"] < 3


def test_an_alarm_that_ended_a_run_ends_it_again_when_resumed(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    flags = ["--hacking_alarm", "2", "--stop_on_alarm", "--max_steps", "30", "--save_steps", "1"]
    assert train(tiny, ranked, tmp_path / "run", *flags) == 0
    expected = learned(tmp_path / "run")
    step = read_status(tmp_path / "run").step
    edit(tmp_path / "run" / "status.json", state="running")
    assert resume(tmp_path / "run") == 0
    assert learned(tmp_path / "run") == expected and read_status(tmp_path / "run").step == step


def test_an_adaptive_coefficient_follows_its_target(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    flags = ["--max_steps", "8", "--learning_rate", "2e-2", "--kl_target", "0.05", "--kl_horizon", "40"]
    assert train(tiny, ranked, tmp_path / "run", *flags) == 0
    coefs = [row["kl_coef"] for row in rows_of(tmp_path / "run")]
    assert coefs[0] == 0.01
    assert coefs[1] < coefs[0], "no divergence yet: it may grow"
    assert coefs[-1] > min(coefs), "too much of it: it is held back"


def test_the_budget_ends_the_training(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    flags = ["--max_steps", "30", "--learning_rate", "2e-2", "--kl_coef", "0", "--kl_budget", "1.5"]
    assert train(tiny, ranked, tmp_path / "run", *flags) == 0
    status = read_status(tmp_path / "run")
    assert status.state == "done" and "--kl_budget 1.5 ends the training here" in status.message
    assert status.step < 30
    assert f"with the policy of step {status.step - 1}, the last one inside" in status.message
    assert evaluation_of(tmp_path / "run")["eval"]["kl"] < 4, "on other prompts it may be a little over, not far"


def test_a_run_resumed_right_before_it_passes_the_budget_goes_back_as_far(
    tiny: Path, ranked: Path, tmp_path: Path
) -> None:
    """Stopped while it learned for the last time, or killed after that: the same weights to the last bit."""
    flags = ["--max_steps", "30", "--learning_rate", "2e-3", "--kl_coef", "0", "--kl_budget", "1.5"]
    assert train(tiny, ranked, tmp_path / "whole", *flags) == 0
    last = read_status(tmp_path / "whole").step
    assert last > 2
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    edit(tmp_path / "killed" / "status.json", state="running")
    with ppo_stopped_at(last - 1):
        assert train(tiny, ranked, tmp_path / "stopped", *flags) == 143
    for run in (tmp_path / "killed", tmp_path / "stopped"):
        assert resume(run) == 0
        assert f"with the policy of step {last - 1}, the last one inside" in read_status(run).message
        assert learned(run) == learned(tmp_path / "whole")


@pytest.mark.parametrize(("flags", "expected"), [([], AT_A_TIME), (["--tokens_per_forward", "77"], 77)])
def test_the_number_of_tokens_at_a_time_is_said_and_kept(
    flags: list[str], expected: int, tiny: Path, ranked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert train(tiny, ranked, tmp_path / "run", "--max_steps", "1", *flags) == 0
    assert f"2 passes of 1 updates, {expected} tokens at a time" in caplog.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tokens_per_forward"] == expected


@pytest.mark.parametrize(
    ("longest", "on_cpu", "expected"), [(100, True, 512), (400, True, 656), (900, True, 1024), (100, False, 1024)]
)
def test_a_prompt_and_its_responses_are_not_split_where_they_fit(longest: int, on_cpu: bool, expected: int) -> None:
    config = PpoConfig("model", data=Path("d"), output=Path("o"), reward="a:b", samples=2, max_new_tokens=128)
    prompts = [Prompt(PromptRecord((Message("user", "?"),), ()), tuple(range(n))) for n in (50, longest)]
    assert sized(config, prompts, on_cpu=on_cpu).tokens_per_forward == expected


def test_a_resumed_run_refuses_another_reward_and_finds_its_own_from_anywhere(
    tiny: Path, ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_run(tiny, tmp_path / "rm")
    monkeypatch.chdir(tmp_path)
    with ppo_stopped_at(2):
        assert train(tiny, ranked, tmp_path / "run", "--reward", "rm") == 143
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    monkeypatch.chdir(tiny)
    assert resume(tmp_path / "run") == 0
    weights = reward / "adapter" / "adapter_model.safetensors"
    save_file({name: -value for name, value in load_file(weights).items()}, weights)
    assert resume(tmp_path / "again") == 2
    assert "has changed since this run began" in capsys.readouterr().err


def test_an_evaluation_that_was_stopped_is_made_up_for(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    flags = ["--eval_steps", "2", "--max_steps", "4"]
    assert train(tiny, ranked, tmp_path / "whole", *flags) == 0
    with ppo_stopped_at(2):
        assert train(tiny, ranked, tmp_path / "run", *flags) == 143
    rows = [row for row in read_metrics(tmp_path / "run") if not (row["step"] == 2 and "eval_kl" in row)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert resume(tmp_path / "run") == 0
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_passes_end_early_at_the_target_divergence(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    flags = ["--num_ppo_epochs", "8", "--learning_rate", "2e-2", "--target_kl", "0.01", "--max_steps", "3"]
    assert train(tiny, ranked, tmp_path / "run", *flags) == 0
    assert any(row["passes"] < 8 for row in rows_of(tmp_path / "run"))


def test_the_critic_warms_up_alone(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    assert train(tiny, ranked, tmp_path / "run", "--critic_warmup_steps", "2", "--max_steps", "4") == 0
    divergences = [row["kl"] for row in rows_of(tmp_path / "run")]
    assert divergences[:3] == [0.0, 0.0, 0.0] and divergences[3] != 0
    assert rows_of(tmp_path / "run")[1]["value_loss"] > 0


def test_gradient_checkpointing_learns_the_same(tiny: Path, ranked: Path, whole: Path, tmp_path: Path) -> None:
    assert train(tiny, ranked, tmp_path / "run", "--gradient_checkpointing") == 0
    for name, expected in load_file(whole / "adapter" / "adapter_model.safetensors").items():
        found = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")[name]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--reward", "tests.train.text_rewards:chance"], "a reward must be reproducible"),
        (["--reward", "tests.train.text_rewards:broken"], "the function raised ZeroDivisionError: no such word"),
        (["--reward", "tests.train.text_rewards:nothing"], "the score of response 1 is 'nan'"),
        (["--per_device_train_batch_size", "50"], "and a step has 50 different ones"),
        (["--max_new_tokens", "190", "--max_length", "200"], "prompts leave no room for --max_new_tokens 190"),
        (["--reward", ""], "--reward is missing"),
        (["--reward", "./nowhere"], "--reward ./nowhere"),
        (["--advantage", "rloo", "--samples", "1"], "Ask for 2 samples or more"),
    ],
    ids=["chance", "raises", "nan", "few prompts", "full context", "no reward", "no such reward", "alone"],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    flags: list[str], expected: str, tiny: Path, ranked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny, ranked, tmp_path / "run", *flags) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and expected in said


@pytest.mark.parametrize("judge", ["--reward", "--gold"])
def test_a_judge_that_breaks_later_leaves_the_last_step(
    judge: str, tiny: Path, ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rewards, "_patience", itertools.count())
    assert train(tiny, ranked, tmp_path / "run", judge, "tests.train.text_rewards:breaks_later") == 2
    status = read_status(tmp_path / "run")
    assert status.state == "failed" and "out of patience" in status.message
    step = checkpoint_step(tmp_path / "run")
    assert step and not damage(tmp_path / "run" / f"checkpoint-{step}")
    assert step == max(row["step"] for row in rows_of(tmp_path / "run")), "no step is lost"


def test_a_loss_that_is_no_number_names_step_and_prompts(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    assert train(tiny, ranked, tmp_path / "run", "--learning_rate", "1e30", "--max_grad_norm", "0") == 2
    status = read_status(tmp_path / "run")
    assert status.state == "failed" and "not finite" in status.message and "step" in status.message


def test_a_policy_that_writes_nothing_ends_in_a_sentence(tiny: Path, ranked: Path, tmp_path: Path) -> None:
    """A model whose EOS is all that it ever writes."""
    folder = shutil.copytree(tiny, tmp_path / "silent")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.zero_()
        hidden = model.model(torch.tensor([[1, 50, 60]])).last_hidden_state[0, -1]
        head[2] = 100 * hidden / hidden.norm() ** 2
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    code = train(folder, ranked, tmp_path / "run", "--temperature", "0.01")
    assert code == 2
    assert "responses are empty" in read_status(tmp_path / "run").message


def test_prompts_left_out_are_counted(tiny: Path, tmp_path: Path) -> None:
    made = rows(24)
    made[0] = {**made[0], "prompt": "Say " + "very " * 60}
    made.append({**made[3], "id": "again"})
    data = write_rows(tmp_path / "rows.jsonl", made)
    assert train(tiny, data, tmp_path / "run", "--max_length", "150", "--max_steps", "1") == 0
    counts = evaluation_of(tmp_path / "run")["prompts"]
    assert counts["too_long"] == 1 and counts["repeated"] == 1
    assert counts["train"] + counts["eval"] == 23


def test_prompts_without_responses_do(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"Question {i}?\n" for i in range(12)))
    assert train(tiny, tmp_path / "prompts.txt", tmp_path / "run", "--max_steps", "1") == 0
