"""`curves.png`: what a policy's training measured, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLUE, _GREY, _RED, _AMBER = "#4f46e5", "#64748b", "#b42318", "#b45309"
_FEW = 15
"""Rows up to which a line goes through all points; of more it is a running mean, the points faint behind it."""
_MAX_POINTS = 2000
"""Points of a line that are drawn; of more, an even selection."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Line:
    """`name`: a column of the metrics; with `eval_` before it, the same on held-out prompts."""

    name: str
    label: str
    color: str = _BLUE


@dataclass(frozen=True)
class _Plot:
    """One drawing. `share`: its lines lie between 0 and 1.

    `level`: a value to measure the lines by, with its label. `start_label`: the first line's value before training is
    another such level, and no point of the curve. `legend`: the corner that a run that goes well leaves free (to look
    for the emptiest takes seconds where rows are many); `left` is above or below 0, where there is more room.
    """

    title: str
    unit: str
    lines: tuple[_Line, ...]
    level: float | None = None
    level_label: str = ""
    start_label: str = ""
    share: bool = False
    legend: str = "upper right"


_PREFERENCE = (
    _Plot("Loss", "", (_Line("loss", "training"),)),
    _Plot(
        "Pair accuracy",
        "share of pairs",
        (_Line("accuracy", "training"),),
        level=0.5,
        level_label="chance",
        start_label="start's own log-probs, held out",
        share=True,
        legend="lower right",
    ),
    _Plot(
        "Responses against the reference",
        "log ratio, nats a response",
        (_Line("chosen_log_ratio", "chosen"), _Line("rejected_log_ratio", "rejected", _RED)),
        level=0,
        legend="left",
    ),
    _Plot("Reward margin", "chosen less rejected", (_Line("margin", "training"),), level=0, legend="upper left"),
)
_DRIFT = _Plot("KL divergence from the reference", "nats a response", (_Line("kl", ""),), level=0)
_LENGTH = _Plot("Length of what it writes", "tokens", (_Line("tokens", ""),))
_SFT = (
    _Plot("Loss", "nats a token", (_Line("loss", "training"),)),
    _Plot("Held-out perplexity", "", (_Line("perplexity", ""),)),
)


_PPO = (
    _Plot("Reward", "mean of a step's responses", (_Line("reward", "reward"), _Line("gold", "gold", _AMBER))),
    _Plot("KL divergence from the reference", "nats a response", (_Line("kl", ""),), level=0),
    _Plot("Entropy", "nats a token", (_Line("entropy", ""),)),
    _Plot("Clipped", "share of tokens", (_Line("clip_fraction", "ratio"), _Line("value_clip_fraction", "value", _RED))),
    _Plot("Critic", "share of the returns' variance", (_Line("explained_variance", "explained"),), level=0),
    _Plot("Length", "tokens", (_Line("tokens", ""),)),
)


def draw_ppo(path: Path, rows: Sequence[Row], *, alarm: int | None) -> None:
    """Of a run of ppo. `alarm`: the step at which over-optimisation was noticed."""
    _draw(path, rows, grid=[_PPO[:3], _PPO[3:]], start={}, alarm=alarm, alarm_label="over-optimisation")


def draw_preference(path: Path, rows: Sequence[Row], *, start: Mapping[str, float], alarm: int | None) -> None:
    """Of a run of dpo. What it writes is drawn where it was looked at more than once: an end is no curve.

    `start`: what was measured before training, under the columns' names. `alarm`: the step at which displacement was
    noticed.
    """
    looked = sum(row.get("eval_kl") is not None for row in rows) > 1
    grid = [[*_PREFERENCE[:2], _DRIFT], [*_PREFERENCE[2:], _LENGTH]] if looked else [_PREFERENCE[:2], _PREFERENCE[2:]]
    _draw(path, rows, grid=grid, start=start, alarm=alarm)


def draw_sft(path: Path, rows: Sequence[Row], *, start: Mapping[str, float]) -> None:
    """Of a run of sft."""
    _draw(path, rows, grid=[_SFT], start=start, alarm=None)


def _draw(
    path: Path,
    rows: Sequence[Row],
    *,
    grid: Sequence[Sequence[_Plot]],
    start: Mapping[str, float],
    alarm: int | None,
    alarm_label: str = "displacement",
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    across, down = len(grid[0]), len(grid)
    engine = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(5 * across, 3.4 * down), layout=engine)
    FigureCanvasAgg(figure)
    last = max((row["step"] for row in rows), default=1)
    for axes, plot in zip(figure.subplots(down, across).flat, (p for line in grid for p in line), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(title=plot.title, xlabel="step", ylabel=plot.unit, xlim=(-0.02 * last, 1.03 * last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _fill(axes, plot, rows=rows, start=start)
        if alarm is not None and len(plot.lines) > 1:
            label = f"{alarm_label}, step {alarm:,}"
            axes.axvline(alarm, color=_AMBER, linewidth=1.2, linestyle="--", zorder=1, label=label)
        _place_legend(axes, plot)
    figure.savefig(path, dpi=110, format="png")


def _fill(axes: Any, plot: _Plot, *, rows: Sequence[Row], start: Mapping[str, float]) -> None:
    level = start.get(plot.lines[0].name) if plot.start_label else None
    drawn = [_line(axes, line, rows=rows, start={} if plot.start_label else start) for line in plot.lines]
    if not any(drawn):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=_GREY)
        return
    if plot.level is not None:
        label = plot.level_label or None
        axes.axhline(plot.level, color=_GREY, linewidth=1, linestyle=":", zorder=1, label=label)
    if level is not None:
        axes.axhline(
            level, color=_GREY, linewidth=1.2, linestyle="--", zorder=1, label=f"{plot.start_label}: {level:.0%}"
        )
    if plot.share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _place_legend(axes: Any, plot: _Plot) -> None:
    if axes.get_legend_handles_labels()[1]:
        low, high = axes.get_ylim()
        corner = plot.legend if plot.legend != "left" else "upper left" if high + low > 0 else "lower left"
        # The frame keeps a line behind it from crossing its words.
        axes.legend(loc=corner, fontsize=9, framealpha=0.85, edgecolor="none")


def _line(axes: Any, line: _Line, *, rows: Sequence[Row], start: Mapping[str, float]) -> bool:
    """Draw what there is of it, and say whether there was anything."""
    steps, values = _points(rows, line.name)
    if len(steps) > _FEW:
        every = -(-len(steps) // _MAX_POINTS)
        means = running_mean(values)[::-every]  # backwards, so that the end is drawn
        axes.plot(steps[::-every], values[::-every], "-", color=line.color, linewidth=0.7, alpha=0.3)
        axes.plot(steps[::-every], means, "-", color=line.color, linewidth=1.8, label=line.label)
    elif steps:
        axes.plot(steps, values, ".-", color=line.color, linewidth=1.5, markersize=5, label=line.label)
    held_out = _points(rows, f"eval_{line.name}")
    if held_out[0] and line.name in start:
        held_out = ([0, *held_out[0]], [start[line.name], *held_out[1]])
    if held_out[0]:
        label = f"{line.label}, held out".removeprefix("training, ") if line.label else None
        style = {"color": line.color, "linewidth": 1.0, "markersize": 7, "markeredgecolor": "white"}
        axes.plot(*held_out, "o--" if len(held_out[0]) > 1 else "o", **style, label=label, zorder=3, clip_on=False)
    return bool(steps or held_out[0])


def running_mean(values: Sequence[float]) -> list[float]:
    """A mean whose memory is a fifteenth of the curve: a few prompts a step make a jagged line."""
    keep = 1 - 1 / max(1.0, len(values) / 15)
    weight = total = 0.0
    means = []
    for value in values:
        weight, total = weight * keep + 1, total * keep + value
        means.append(total / weight)
    return means


def _points(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
