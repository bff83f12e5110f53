from __future__ import annotations

import random
from typing import Any

import pytest

from train.hacking import LEAST_ROWS, HackingAlarm


def rows(count: int = 30, **changes: Any) -> list[dict[str, float]]:
    """A run whose reward rises by two of its deviations; `changes`: a column's value at a share (0 to 1) of the way."""
    made = []
    for n in range(count):
        way = n / (count - 1)
        row = {"kl": 2 * way, "reward": 2 * way, "reward_std": 1.0, "tokens": 40.0, "repetition": 0.05, "step": n + 1}
        made.append(row | {name: float(value(way)) for name, value in changes.items()})
    return made


def alarm_on(made: list[dict[str, float]], threshold: float = 20.0, *, stops: bool = False) -> HackingAlarm:
    alarm = HackingAlarm(threshold, stops=stops)
    for row in made:
        alarm.observe(row)
    return alarm


def test_a_reward_that_rises_near_the_reference_is_no_alarm() -> None:
    assert alarm_on(rows()).step is None
    assert alarm_on(rows(gold=lambda w: w, gold_std=lambda w: 0.5)).message == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl": lambda w: 60 * w}, "nats a response from the reference (the alarm is set to 20)"),
        ({"tokens": lambda w: 40 + 60 * w}, "responses grew from 4"),
        ({"repetition": lambda w: 0.05 + 0.6 * w}, "repetitions grew from"),
        (
            {"gold": lambda w: w * (1 - w), "gold_std": lambda w: 0.5, "responses": lambda w: 64},
            "gold has fallen from",
        ),
    ],
    ids=["far", "longer", "repeating", "gold"],
)
def test_each_way_of_hacking_a_reward_sets_it_off(changes: dict[str, Any], said: str) -> None:
    alarm = alarm_on(rows(**changes))
    assert alarm.step is not None and LEAST_ROWS <= alarm.step <= 30
    assert alarm.message.startswith(f"over-optimisation: at step {alarm.step} ") and said in alarm.message
    assert "--kl_coef" in alarm.message
    assert not alarm.asks_to_stop


@pytest.mark.parametrize(
    "changes",
    [{"tokens": lambda w: 40 + 60 * w}, {"repetition": lambda w: 0.05 + 0.6 * w}],
    ids=["longer", "repeating"],
)
def test_length_and_repetition_alone_are_no_hacking_the_reward_must_rise(changes: dict[str, Any]) -> None:
    assert alarm_on(rows(reward=lambda w: 0.0, **changes)).step is None


@pytest.mark.parametrize("responses", [8, 32, 64])
def test_chance_alone_sets_it_off_hardly_ever(responses: int) -> None:
    """Reward and gold of so many responses a step, without any trend, in 100 steps of 100 runs."""
    chance = random.Random(0)

    def noise(way: float) -> float:
        return chance.gauss(0, responses**-0.5)

    still = {"kl": lambda w: 1.0, "reward": noise, "gold": noise, "gold_std": lambda w: 1.0}
    runs = [alarm_on(rows(100, responses=lambda w: responses, **still)) for _ in range(100)]
    assert sum(run.step is not None for run in runs) <= 5


def test_gold_that_falls_together_with_the_reward_is_no_hacking() -> None:
    falls = rows(gold=lambda w: 1 - w, reward=lambda w: 1 - w, gold_std=lambda w: 0.5)
    assert alarm_on(falls).step is None


def test_it_asks_for_the_end_where_it_was_told_to_and_only_then() -> None:
    far = rows(kl=lambda w: 60 * w)
    assert alarm_on(far, stops=True).asks_to_stop
    assert not alarm_on(rows(), stops=True).asks_to_stop


def test_0_turns_all_of_it_off() -> None:
    assert alarm_on(rows(kl=lambda w: 1000.0), threshold=0).step is None


def test_rows_of_an_evaluation_are_passed_over() -> None:
    made = rows(kl=lambda w: 60 * w)
    mixed = [r for row in made for r in (row, {"step": row["step"], "eval_reward": 1.0, "eval_kl": 99.0})]
    assert alarm_on(mixed).step == alarm_on(made).step


def test_a_resumed_run_sees_the_same_rows_and_says_the_same() -> None:
    made = rows(kl=lambda w: 60 * w)
    first, resumed = alarm_on(made), alarm_on(made[:10])
    for row in made[10:]:
        resumed.observe(row)
    assert (resumed.step, resumed.message) == (first.step, first.message)
