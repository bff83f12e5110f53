"""A run of PPO as the pages show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from annotate.run_view import evaluation_view, result_of, run_view
from tests.annotate.made_runs import PPO_EVALUATION, add_rows, make_run, write
from tests.train.made_rollouts import add_rollouts
from train import jobs

MESSAGE = (
    "over-optimisation: at step 9 the policy is <31> nats a response from the reference. Raise --kl_coef or set "
    "--kl_target."
)
FOUND: dict[str, Any] = PPO_EVALUATION["eval"]


def view(**changes: Any) -> str:
    """`changes`: of what was measured."""
    return evaluation_view({**PPO_EVALUATION, "eval": {**FOUND, **changes}}, stage="ppo")


def shown(path: Path) -> str:
    return run_view(jobs.read_run(path))


def test_start_and_end_stand_side_by_side() -> None:
    text = view()
    for name, before, after in (
        ("Reward", "+0.120", "+1.920"),
        ("Second judge", "+0.400", "+0.710"),
        ("KL from the start, nats a response", "0.00", "6.25"),
        ("Length, tokens", "49", "58"),
        ("End by themselves", "75%", "88%"),
        ("Repeated text", "2%", "4%"),
    ):
        assert f"<td>{name}</td><td>{before}</td><td>{after}</td>" in text
    assert "Measured on its answers to 3 prompts that it never learned from." in text
    assert "The reward rose by 1.800, 3.0 standard deviations of the start." in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "which it never learned from, agrees that the answers are better"),
        ({"gold": 0.3}, "does not agree that the answers are better: the reward may have been fooled"),
        ({"gold": None}, "Read the answers below: a reward can be fooled."),
        ({"reward": -1.88}, "The reward fell by 2.000, 3.3 standard deviations of the start. Give it more steps"),
        ({"reward": 1.2}, "1.8 standard deviations of the start. On so few prompts that may be chance"),
        ({"reward": 0.02}, "The reward fell by 0.100, 0.2 standard deviations of the start. On so few prompts"),
        ({"reward": 1.2, "prompts": 30}, "agrees that the answers are better"),
    ],
)
def test_the_verdict_asks_the_second_judge(changes: dict[str, Any], words: str) -> None:
    assert words in view(**changes)


def test_what_was_not_measured_is_left_out() -> None:
    text = view(gold=None, start=None)
    assert "<td>Second judge</td>" not in text
    assert "<td>Reward</td><td>not measured</td><td>+1.920</td>" in text
    assert "None" not in text and "rose" not in text


def test_without_held_out_prompts_it_says_what_to_do() -> None:
    text = evaluation_view({**PPO_EVALUATION, "eval": None, "samples": []}, stage="ppo")
    assert "Hold out more prompts" in text
    assert "21 to learn from, 3 held out; left out: 2 too long, 1 repeated" in text


def test_answers_before_and_after_are_shown_as_text_the_rest_in_a_fold() -> None:
    text = view()
    assert '<p class="asked">Question &lt;0&gt;?</p>' in text
    assert "Before, reward -0.50</span>" in text and "After, reward +1.50</span>" in text
    assert "Before 0: it is &lt;b&gt;late&lt;/b&gt;." in text
    assert "<b>" not in text
    assert text.index("Question &lt;1&gt;") < text.index("<summary>2 more</summary>") < text.index("Question &lt;2&gt;")


def test_an_empty_answer_is_said_to_be_empty() -> None:
    samples = [{"prompt": "q", "start": "", "end": "x", "start_reward": 0.0, "end_reward": 1.0}]
    assert "<em>(nothing)</em>" in evaluation_view({**PPO_EVALUATION, "samples": samples}, stage="ppo")


def test_nothing_in_an_answer_turns_the_text_around() -> None:
    samples = [{"prompt": "a\nb", "start": "\u202ex\ny", "end": "\x07", "start_reward": 0.0, "end_reward": 1.0}]
    text = evaluation_view({**PPO_EVALUATION, "samples": samples}, stage="ppo")
    assert "a\nb" in text and "\\u202ex\ny" in text and "\\x07" in text
    assert "\u202e" not in text and "\x07" not in text


def test_roles_and_prompts_are_told() -> None:
    text = view()
    assert "<dt>Reward model</dt><dd>shared base, with the actor&#x27;s own base</dd>" in text
    assert "<dt>Critic</dt><dd>begins as a copy of the reward model</dd>" in text
    other = evaluation_view({**PPO_EVALUATION, "roles": {"reward": "function", "critic": None}}, stage="ppo")
    assert "<dt>Reward model</dt><dd>function</dd>" in other
    assert "<dt>Critic</dt><dd>none</dd>" in other


def test_an_evaluation_of_nothing_else_still_shows() -> None:
    text = evaluation_view({"eval": {"prompts": 1, "reward": 0.5}}, stage="ppo")
    assert "+0.500" in text and "1 prompt that" in text and "None" not in text


def test_the_run_draws_its_curves_with_the_levels_of_its_settings(tmp_path: Path) -> None:
    text = shown(make_run(tmp_path, "r", stage="ppo"))
    assert text.count("<svg") == 11
    assert "alarm 5" in text


def test_the_run_leads_to_its_tokens_once_there_are_some(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a&b", stage="ppo", state="running")
    assert "/inspect" not in shown(path)
    add_rollouts(path, 1)
    assert 'href="/inspect?run=a%26b"' in shown(path)


def test_no_alarm_brings_no_banner(tmp_path: Path) -> None:
    assert "Over-optimisation" not in shown(make_run(tmp_path, "r", stage="ppo"))


def test_the_alarm_stands_in_a_banner_with_the_page_s_own_remedy(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r", stage="ppo", message=MESSAGE)
    end = {"step": 9, "message": MESSAGE, "stopped": True}
    write(path / "eval.json", {**PPO_EVALUATION, "alarm": end})
    text = shown(path)
    assert "<strong>Over-optimisation:</strong> at step 9 the policy is &lt;31&gt; nats" in text
    assert "The training ended there, as asked. On the Train page: a higher KL weight" in text
    assert text.index("Over-optimisation") < text.index("<svg")
    assert result_of(jobs.read_run(path)) == "reward +0.12 → +1.92, over-optimised"
    write(path / "eval.json", {**PPO_EVALUATION, "alarm": {**end, "stopped": False}})
    assert "as asked" not in shown(path)


def test_a_running_run_tells_of_the_alarm_once(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r", stage="ppo", state="running", message=MESSAGE)
    assert shown(path).count("at step 9") == 1


def test_a_row_of_metrics_tells_of_the_alarm_where_nothing_else_does(tmp_path: Path) -> None:
    path = make_run(tmp_path, "r", stage="ppo", state="failed", message="no memory")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.5, "alarm": 1.0}\n')
    add_rows(path, 1, first=7, stage="ppo")
    assert "<strong>Over-optimisation:</strong> at step 6 the alarm went off" in shown(path)


def test_a_spent_budget_is_told(tmp_path: Path) -> None:
    message = "budget: before step 5 the policy is 12 nats a response from the reference; --kl_budget 10 ends it"
    path = make_run(tmp_path, "r", stage="ppo", message=message)
    assert shown(path).count("before step 5") == 1
    write(path / "eval.json", {**PPO_EVALUATION, "budget": message})
    text = shown(path)
    assert "<strong>KL budget:</strong> before step 5 the policy is 12 nats" in text
    assert "Over-optimisation" not in text


def test_the_result_in_a_word(tmp_path: Path) -> None:
    assert result_of(jobs.read_run(make_run(tmp_path, "r", stage="ppo"))) == "reward +0.12 → +1.92"
    path = make_run(tmp_path, "s", stage="ppo")
    write(path / "eval.json", {**PPO_EVALUATION, "eval": None})
    assert result_of(jobs.read_run(path)) == ""
    write(path / "eval.json", {**PPO_EVALUATION, "eval": {**FOUND, "start": {}}})
    assert result_of(jobs.read_run(path)) == "reward +1.92"
