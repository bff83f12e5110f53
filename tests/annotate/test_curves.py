"""The drawing of a run's curves."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from annotate.curves import curves, grid_of, nice_top, short, smoothed
from tests.annotate.made_runs import row_of


def test_nothing_is_drawn_before_there_is_a_line() -> None:
    assert curves([]) == ""
    assert curves([{"step": 1, "loss": 0.7, "accuracy": 0.5}]) == ""


def test_loss_and_accuracy_are_drawn_with_marks_for_held_out_prompts() -> None:
    rows = [{"step": s, "loss": 1 / s, "accuracy": s / 10} for s in range(1, 11)]
    drawn = curves([*rows, {"step": 10, "eval_loss": 0.3, "eval_accuracy": 0.9}])
    assert drawn.count("<svg") == 2
    assert drawn.count("<circle") == 2
    assert "0.900 held out" in drawn


def test_every_point_lies_inside_the_drawing() -> None:
    rows = [{"step": s, "loss": abs(math.sin(s)) * 37, "accuracy": 1.0} for s in range(1, 300)]
    places = re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]*)"', curves(rows))))
    assert len(places) == 4 * 299
    assert all(40 <= float(x) <= 410 and 10 <= float(y) <= 148 for x, y in places)


def test_numbers_that_are_none_or_not_finite_are_passed_over() -> None:
    rows = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": None},
        {"step": 4, "loss": 0.4},
    ]
    assert len(re.findall(r"[\d.]+,[\d.]+", re.findall(r'class="raw" points="([^"]*)"', curves(rows))[0])) == 2


def test_a_short_curve_is_not_smoothed_and_a_long_one_is() -> None:
    short = [(float(i), float(i % 2)) for i in range(10)]
    assert smoothed(short) == short
    long = smoothed([(float(i), float(i % 2)) for i in range(300)])
    assert all(0.4 < y < 0.6 for _, y in long[100:])


@pytest.mark.parametrize(("highest", "top"), [(0, 1), (0.7, 0.8), (0.69, 0.8), (1, 1), (1.1, 1.2), (9, 10), (37, 40)])
def test_a_scale_ends_on_a_short_number(highest: float, top: float) -> None:
    assert nice_top(highest) == pytest.approx(top)


def dpo_rows(count: int, *, down: float = -1.0) -> list[dict[str, float]]:
    ratios = {"chosen_log_ratio": down / 4, "rejected_log_ratio": down}
    return [
        {"step": s, "loss": 0.7, "accuracy": 0.5, "margin": s / 10, **{k: v * s for k, v in ratios.items()}}
        for s in range(1, count + 1)
    ]


def ends(drawn: str, kind: str) -> list[float]:
    """How far down each line of this class ends."""
    lines = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', drawn)
    return [float(line.split()[-1].split(",")[1]) for line in lines]


def test_each_stage_draws_what_it_measures() -> None:
    assert curves(dpo_rows(5), "dpo").count("<svg") == 4
    assert curves(dpo_rows(5), "rm").count("<svg") == 2
    assert curves(dpo_rows(5), "sft").count("<svg") == 1, "no perplexity was measured"
    assert curves(dpo_rows(5), "of another version").count("<svg") == 1


def test_what_was_not_measured_is_not_drawn() -> None:
    rows = [{k: v for k, v in row.items() if "ratio" not in k} for row in dpo_rows(5)]
    assert "against the reference" not in curves(rows, "dpo")


def test_chosen_and_rejected_are_two_lines_told_apart_below_a_marked_zero() -> None:
    drawn = curves([*dpo_rows(10), {"step": 10, "eval_chosen_log_ratio": -2.5, "eval_rejected_log_ratio": -9}], "dpo")
    figure = drawn[drawn.index("Chosen and rejected") :].partition("</figure>")[0]
    assert '<span class="key first">chosen -2.500, held out -2.500</span>' in figure
    assert '<span class="key second">rejected -10.0, held out -9.000</span>' in figure
    zero = float(re.findall(r'class="grid zero" x1="40" x2="410" y1="([\d.]+)"', figure)[0])
    (chosen,), (rejected,) = ends(figure, "line first"), ends(figure, "line second")
    assert zero == 10 < chosen < rejected <= 148
    assert [figure.count(f'class="mark {kind}"') for kind in ("first", "second")] == [1, 1]


def test_a_line_keeps_its_look_where_the_other_one_is_missing() -> None:
    rows = [{k: v for k, v in row.items() if k != "chosen_log_ratio"} for row in dpo_rows(5)]
    drawn = curves(rows, "dpo")
    assert "line second" in drawn and "line first" not in drawn


@pytest.mark.parametrize(("lowest", "highest"), [(-0.001, 0), (-1, 0.2), (-7, -3), (-1234, 5), (-0.3, 0.3), (-5, 900)])
def test_a_scale_below_zero_holds_all_values_and_zero_on_a_few_short_numbers(lowest: float, highest: float) -> None:
    grid = grid_of(lowest, highest)
    assert grid[0] <= lowest and grid[-1] >= max(highest, 0)
    assert 0 in grid
    assert 2 <= len(grid) <= 7
    gaps = [b - a for a, b in pairwise(grid)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))
    assert float(f"{gaps[0]:.2g}") == pytest.approx(gaps[0])


def test_every_point_of_a_signed_curve_lies_inside_the_drawing() -> None:
    rows = [{"step": s, "margin": math.sin(s) * 37, "loss": 1.0} for s in range(1, 100)]
    drawn = curves(rows, "dpo")
    figure = drawn[drawn.index("Implicit reward margin") :]
    places = re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]*)"', figure)))
    heights = {float(y) for _, y in places}
    assert len(places) == 2 * 99
    assert 10 <= min(heights) < 60 and 100 < max(heights) <= 148


def test_held_out_marks_alone_make_a_line_once_there_are_two() -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.9}, {"step": 2, "eval_perplexity": 12.0}]
    assert "perplexity" not in curves(rows, "sft")
    drawn = curves([{"step": 0, "eval_perplexity": 20.0}, *rows], "sft")
    figure = drawn[drawn.index("Held-out perplexity") :]
    assert (figure.count("<circle"), figure.count('class="line"')) == (2, 1)
    assert ">12.0 held out</span>" in figure


@pytest.mark.parametrize(
    ("number", "text"), [(0.12345, "0.123"), (-9.5, "-9.500"), (12.345, "12.3"), (-1234, "-1,234.0")]
)
def test_numbers_stay_short(number: float, text: str) -> None:
    assert short(number) == text


def ppo_rows(count: int, **changes: float) -> list[dict[str, float]]:
    return [{**row_of("ppo", step), **changes} for step in range(1, count + 1)]


def figure_of(drawn: str, title: str) -> str:
    return drawn[drawn.index(f"<strong>{title}") :].partition("</figure>")[0]


def test_ppo_draws_reward_divergence_critic_and_speed() -> None:
    drawn = curves([{"step": 0, "eval_reward": 0.1, "eval_kl": 0.0}, *ppo_rows(5)], "ppo")
    titles = re.findall(r"<figcaption><strong>([^<]*)", drawn)
    assert titles == [
        *("Reward", "Second judge", "KL from the start, nats", "Length, tokens", "Ended by itself", "Repeated text"),
        *("Entropy, nats a token", "Clipped", "Critic: loss", "Critic: returns foreseen", "Speed, tokens a second"),
    ]
    assert "step 0: 0.100" in figure_of(drawn, "Reward")


def test_a_run_without_critic_and_second_judge_draws_none_of_them() -> None:
    lacking = ("gold", "value_loss", "value_clip_fraction", "explained_variance")
    drawn = curves([{k: v for k, v in row.items() if k not in lacking} for row in ppo_rows(5)], "ppo")
    assert "Critic" not in drawn and "Second judge" not in drawn
    assert "line second" not in figure_of(drawn, "Clipped")


def test_three_lines_of_a_figure_are_told_apart() -> None:
    figure = figure_of(curves(ppo_rows(5), "ppo"), "Speed")
    for kind, words in (("first", "writing 120.0"), ("second", "scoring 900.0"), ("third", "learning 300.0")):
        assert f'<span class="key {kind}">{words}</span>' in figure
        assert f'<polyline class="line {kind}"' in figure


def test_a_level_is_drawn_where_it_is_near_and_named_where_it_is_far() -> None:
    settings = {"kl_budget": 4.0, "kl_target": 0.0, "hacking_alarm": 20.0}
    figure = figure_of(curves(ppo_rows(10), "ppo", settings=settings), "KL from")  # up to 2.5
    assert figure.count('<line class="level"') == 1
    assert ">budget 4</text>" in figure
    assert '<span class="key level">alarm 20</span>' in figure
    assert "target" not in figure
    (level,) = re.findall(r'<line class="level" x1="40" x2="410" y1="([\d.]+)"', figure)
    assert 10 <= float(level) < ends(figure, "line")[0]


def test_a_value_below_the_floor_lies_on_it() -> None:
    rows = [{"step": s, "loss": 0.0, "explained_variance": v} for s, v in enumerate((-50.0, -2.0, 0.5), start=1)]
    figure = figure_of(curves(rows, "ppo"), "Critic: returns")
    assert ">-1</text>" in figure and ">1</text>" in figure and "-50" not in figure
    heights = re.findall(r"[\d.]+,([\d.]+)", re.findall(r'class="raw" points="([^"]*)"', figure)[0])
    assert [float(y) for y in heights[:2]] == [148.0, 148.0]
    assert float(heights[2]) < 79
