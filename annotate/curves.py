"""A run's curves as a drawing made on the server: no script, 4 KB, and it takes the page's light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from annotate.panel import escaped

MAX_POINTS = 300

_WIDTH, _HEIGHT = 420, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 22
_GRID_LINES = 4
_NEAR = 2.5
"""A level up to so many times as high as the line is drawn."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """What one line shows: columns of `metrics.jsonl`, in training and on held-out prompts; either may be empty.

    `name` tells it from another line of the same figure.
    """

    training: str
    held_out: str
    name: str = ""


@dataclass(frozen=True)
class Figure:
    """One drawing. `top`: the upper end of its scale, None = from the data; `floor`: no lower than this.

    `levels`: settings of the run to measure the lines by, each with its words; 0 is none.
    """

    title: str
    lines: tuple[Line, ...]
    top: float | None = None
    floor: float | None = None
    levels: tuple[tuple[str, str], ...] = ()


_MINIMISED = Figure("Loss", (Line("loss", "eval_loss"),))
_ACCURACY = Figure("Pair accuracy", (Line("accuracy", "eval_accuracy"),), top=1.0)

FIGURES: Mapping[str, tuple[Figure, ...]] = {
    "sft": (_MINIMISED, Figure("Held-out perplexity", (Line("", "eval_perplexity"),))),
    "rm": (_MINIMISED, _ACCURACY),
    "dpo": (
        _MINIMISED,
        _ACCURACY,
        Figure(
            "Chosen and rejected against the reference",
            (
                Line("chosen_log_ratio", "eval_chosen_log_ratio", "chosen"),
                Line("rejected_log_ratio", "eval_rejected_log_ratio", "rejected"),
            ),
        ),
        Figure("Implicit reward margin", (Line("margin", "eval_margin"),)),
    ),
    "ppo": (
        Figure("Reward", (Line("reward", "eval_reward"),)),
        Figure("Second judge", (Line("gold", "eval_gold"),)),
        Figure(
            "KL from the start, nats",
            (Line("kl", "eval_kl"),),
            levels=(("kl_budget", "budget"), ("kl_target", "target"), ("hacking_alarm", "alarm")),
        ),
        Figure("Length, tokens", (Line("tokens", "eval_tokens"),)),
        Figure("Ended by itself", (Line("finished", "eval_finished"),), top=1.0),
        Figure("Repeated text", (Line("repetition", "eval_repetition"),)),
        Figure("Entropy, nats a token", (Line("entropy", ""),)),
        Figure("Clipped", (Line("clip_fraction", "", "tokens"), Line("value_clip_fraction", "", "values"))),
        Figure("Critic: loss", (Line("value_loss", ""),)),
        Figure("Critic: returns foreseen", (Line("explained_variance", ""),), top=1.0, floor=-1.0),
        Figure(
            "Speed, tokens a second",
            (
                Line("rollout_tokens_per_s", "", "writing"),
                Line("scoring_tokens_per_s", "", "scoring"),
                Line("update_tokens_per_s", "", "learning"),
            ),
        ),
    ),
}
"""The drawings of each stage. What a run did not measure is not drawn."""


@dataclass(frozen=True)
class _Drawn:
    """The points of a line. `kind`: `first`, `second` or `third` of a figure with several, else empty."""

    name: str
    kind: str
    points: list[Point]
    marks: list[Point]

    @property
    def has_line(self) -> bool:
        """Marks alone make a line too."""
        return len(self.points or self.marks) > 1

    def styled(self, part: str) -> str:
        """The class of a part of the line."""
        return f"{part} {self.kind}".strip()


@dataclass(frozen=True)
class _Plane:
    """Steps across and values up, as places in the drawing."""

    first: float
    last: float
    grid: Sequence[float]

    def place(self, point: Point) -> tuple[float, float]:
        """Where a point lies; a value beyond the scale lies on its edge."""
        across = (point[0] - self.first) / max(self.last - self.first, 1)
        bottom, top = self.grid[0], self.grid[-1]
        up = min(max((point[1] - bottom) / (top - bottom), 0.0), 1.0)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )


def curves(rows: Sequence[Mapping[str, Any]], stage: str = "rm", *, settings: Mapping[str, Any] | None = None) -> str:
    """A stage's figures over the steps, from the rows of `metrics.jsonl`; empty before the second row.

    `settings`: those of the run.
    """
    drawn = [_figure(figure, rows, settings or {}) for figure in FIGURES.get(stage, (_MINIMISED,))]
    return f'<div class="curves">{"".join(drawn)}</div>' if any(drawn) else ""


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A running mean whose memory is a fifteenth of the curve: a few prompts a step make a jagged line."""
    keep = 1 - 1 / max(1.0, len(points) / 15)
    weight = total = 0.0
    line = []
    for x, y in points:
        weight = weight * keep + 1
        total = total * keep + y
        line.append((x, total / weight))
    return line


def nice_top(highest: float) -> float:
    """The end of a scale that is not below `highest` and whose quarters are short numbers."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next((f * power for f in (1, 1.2, 1.6, 2, 3, 4, 6, 8) if f * power >= highest), 10 * power)


def grid_of(lowest: float, highest: float) -> list[float]:
    """The values of the grid lines, from below `lowest` to above `highest`; 0 is always one of them."""
    if lowest >= 0:
        top = nice_top(highest)
        return [top * i / _GRID_LINES for i in range(_GRID_LINES + 1)]
    highest = max(highest, 0.0)
    power = 10.0 ** math.floor(math.log10((highest - lowest) / _GRID_LINES))
    gap = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power * _GRID_LINES >= highest - lowest)
    return [n * gap for n in range(math.floor(lowest / gap), math.ceil(highest / gap) + 1)]


def _figure(figure: Figure, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Each line (in training) with its marks (held out), and the levels to measure them by."""
    kinds = ("first", "second", "third") if len(figure.lines) > 1 else ("",)
    read = [
        _Drawn(line.name, kind, _points(rows, line.training), _points(rows, line.held_out))
        for line, kind in zip(figure.lines, kinds, strict=False)
    ]
    drawn = [line for line in read if line.has_line]
    if not drawn:
        return ""
    levels = [(words, float(settings[name])) for name, words in figure.levels if settings.get(name)]
    plane, within = _plane(figure, drawn, levels)
    captions = [_caption(line) for line in drawn]
    keys = "".join(
        f'<span class="{line.styled("key")}">{escaped(caption)}</span>'
        for line, caption in zip(drawn, captions, strict=True)
    ) + "".join(
        f'<span class="key level">{escaped(f"{words} {value:g}")}</span>'
        for words, value in levels
        if (words, value) not in within
    )
    label = escaped(f"{figure.title} over the steps: {'; '.join(captions)}")
    lines = "".join(_level(*level, plane) for level in within) + "".join(_line(line, plane) for line in drawn)
    return (
        f"<figure><figcaption><strong>{escaped(figure.title)}</strong>{keys}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{_grid(plane)}{lines}</svg></figure>'
    )


def _plane(
    figure: Figure, drawn: Sequence[_Drawn], levels: Sequence[tuple[str, float]]
) -> tuple[_Plane, list[tuple[str, float]]]:
    """The scale, and the levels within it: one far above would press the line to the ground."""
    points = list(chain.from_iterable((*line.points, *line.marks) for line in drawn))
    steps, values = zip(*points, strict=True)
    highest = max(values)
    within = [level for level in levels if level[1] <= _NEAR * highest]
    lowest = min(values) if figure.floor is None else max(min(values), figure.floor)
    grid = grid_of(lowest, figure.top or max(highest, *(value for _, value in within), lowest))
    return _Plane(first=min(steps), last=max(steps), grid=grid), within


def _level(words: str, value: float, plane: _Plane) -> str:
    y = plane.place((plane.first, value))[1]
    text = escaped(f"{words} {value:g}")
    return (
        f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="level" x="{_WIDTH - _RIGHT}" y="{y + 13:.1f}" text-anchor="end">{text}</text>'
    )


def _points(rows: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    """The rows that have this number. A bare NaN or infinity cannot be drawn, and training stops at it anyway."""
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [(float(x), float(y)) for x, y in found if math.isfinite(y)]


def _caption(line: _Drawn) -> str:
    """Where the line stands now."""
    now, marked = smoothed(line.points)[-1:], line.marks[-1:]
    if line.name:
        return f"{line.name} {', held out '.join(short(y) for _, y in (*now, *marked))}"
    return ", ".join([*(f"{short(y)} in training" for _, y in now), *(f"{short(y)} held out" for _, y in marked)])


def short(number: float) -> str:
    """Three places after the point, one of a larger number."""
    return f"{number:.3f}" if abs(number) < 10 else f"{number:,.1f}"


def _line(line: _Drawn, plane: _Plane) -> str:
    path = "".join(
        _path(line.styled(kind), map(plane.place, points))
        for kind, points in (("raw", line.points), ("line", smoothed(line.points) or line.marks))
        if points
    )
    of = f"{line.name} held-out prompts".strip()
    dots = "".join(
        f'<circle class="{line.styled("mark")}" r="5" cx="{x}" cy="{y}">'
        f"<title>{escaped(of)}, step {mark[0]:.0f}: {short(mark[1])}</title></circle>"
        for mark, (x, y) in ((mark, plane.place(mark)) for mark in line.marks)
    )
    return path + dots


def _grid(plane: _Plane) -> str:
    lines = []
    for value in plane.grid:
        y = plane.place((plane.first, value))[1]
        kind = "grid zero" if value == 0 and plane.grid[0] < 0 else "grid"
        lines.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    lines.append(f'<text x="{_LEFT}" y="{_HEIGHT - 5}">step {plane.first:.0f}</text>')
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{plane.last:.0f}</text>')
    return "".join(lines)


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _path(kind: str, places: Iterable[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
