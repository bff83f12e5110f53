"""A run's curves as a drawing made on the server: no script, 4 KB, and it takes the page's light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from annotate.panel import escaped

MAX_POINTS = 300

_WIDTH, _HEIGHT = 420, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 22
_GRID_LINES = 4

Point = tuple[float, float]


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss and accuracy over the steps, from the rows of `metrics.jsonl`; empty before the second row."""
    drawn = [
        _figure("Loss", _points(rows, "loss"), _points(rows, "eval_loss"), top=None),
        _figure("Pair accuracy", _points(rows, "accuracy"), _points(rows, "eval_accuracy"), top=1.0),
    ]
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


def _points(rows: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    """The rows that have this number. A bare NaN or infinity cannot be drawn, and training stops at it anyway."""
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [(float(x), float(y)) for x, y in found if math.isfinite(y)]


def _figure(name: str, points: Sequence[Point], marks: Sequence[Point], *, top: float | None) -> str:
    """One curve (in training) with its marks (held-out); `top`: the upper end of the scale, None = from the data."""
    if len(points) < 2:
        return ""
    line = smoothed(points)
    top = top or nice_top(max(y for _, y in (*points, *marks)))
    first, last = points[0][0], max(x for x, _ in (*points, *marks))

    def place(point: Point) -> tuple[float, float]:
        across = (point[0] - first) / max(last - first, 1)
        up = min(max(point[1] / top, 0.0), 1.0)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    dots = "".join(
        f'<circle class="mark" r="5" cx="{x}" cy="{y}">'
        f"<title>held-out prompts, step {mark[0]:.0f}: {mark[1]:.3f}</title></circle>"
        for mark, (x, y) in ((mark, place(mark)) for mark in marks)
    )
    summary = f"{line[-1][1]:.3f} in training" + (f", {marks[-1][1]:.3f} held out" if marks else "")
    return (
        f"<figure><figcaption><strong>{escaped(name)}</strong><span>{summary}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escaped(name)} over the steps: {summary}">'
        f"{_grid(top, first=first, last=last)}{_path('raw', map(place, points))}{_path('line', map(place, line))}{dots}"
        "</svg></figure>"
    )


def _grid(top: float, *, first: float, last: float) -> str:
    lines = []
    for i in range(_GRID_LINES + 1):
        y = _HEIGHT - _BOTTOM - i / _GRID_LINES * (_HEIGHT - _TOP - _BOTTOM)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * i / _GRID_LINES:.3g}</text>')
    lines.append(f'<text x="{_LEFT}" y="{_HEIGHT - 5}">step {first:.0f}</text>')
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{last:.0f}</text>')
    return "".join(lines)


def _path(kind: str, places: Iterable[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
