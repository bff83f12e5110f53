"""`eval.png`: an evaluation as four drawings, to see what its numbers hide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_POINTS = 4000
"""Responses drawn against their length; of more, an even selection."""
MAX_RANKS = 10
"""Ranks, and distances in rank, that are drawn apart; those from here on share one place."""

_BLUE, _GREY, _RED = "#4f46e5", "#64748b", "#b42318"


@dataclass(frozen=True)
class ScoredResponse:
    """One response: its length in characters, its reward, and the rank that each ranking gave it.

    `lead`: the reward above the mean of its prompt's responses. Training compares within a prompt, so that a prompt's
    rewards may all be higher than another's and mean nothing by it.
    """

    chars: int
    reward: float
    lead: float
    ranks: tuple[int, ...]


def draw_evaluation(path: Path, found: Mapping[str, Any], *, points: Sequence[ScoredResponse]) -> None:
    """Write a PNG 1100 pixels wide. `found`: what `evaluation.measure` gives; where nothing was counted, it says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(10, 7.8), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    (reliability, margins), (length, ranks) = figure.subplots(2, 2)
    _reliability(reliability, found["calibration"])
    _margins(margins, found["by_margin"], longer=found["longer_wins"]["accuracy"])
    _length(length, found["length"], points=points)
    _ranks(ranks, points)
    for axes in (reliability, margins, length, ranks):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, format="png")


def _reliability(axes: Any, found: Mapping[str, Any]) -> None:
    """Observed against predicted; on the diagonal, a pair called 80 % sure is right in 80 of 100 cases."""
    ece = found["ece"]
    axes.set_title("Calibration" if ece is None else f"Calibration: error (ECE) {ece:.3f}")
    axes.set_xlabel("predicted probability that the preferred response is better")
    axes.set_ylabel("share of people who agree")
    axes.set(xlim=(0.48, 1.02), ylim=(-0.03, 1.05))
    axes.plot([0.5, 1], [0.5, 1], "--", color=_GREY, linewidth=1, label="perfectly calibrated")
    bins = found["bins"]
    if not bins:
        _nothing(axes, "no comparison")
        return
    most = max(b["pairs"] for b in bins)
    predicted, observed = [b["predicted"] for b in bins], [b["observed"] for b in bins]
    axes.plot(predicted, observed, "-", color=_BLUE, linewidth=1.5)
    sizes = [20 + 180 * b["pairs"] / most for b in bins]
    axes.scatter(predicted, observed, s=sizes, color=_BLUE, alpha=0.8, label=f"model (largest dot: {most:,} pairs)")
    axes.legend(loc="lower right", frameon=False, fontsize=9, markerscale=0.6)


def _margins(axes: Any, rows: Sequence[Mapping[str, Any]], *, longer: float | None) -> None:
    axes.set_title("Accuracy by distance in rank")
    axes.set_xlabel("distance of the two responses in the ranking (tiers)")
    axes.set_ylabel("pair accuracy")
    axes.set_ylim(0, 1.18)
    if not rows:
        _nothing(axes, "no strict comparison")
        return
    wins: defaultdict[int, float] = defaultdict(float)
    pairs: defaultdict[int, int] = defaultdict(int)
    for row in rows:
        margin = min(row["margin"], MAX_RANKS)
        wins[margin] += row["accuracy"] * row["pairs"]
        pairs[margin] += row["pairs"]
    shares = {margin: wins[margin] / n for margin, n in pairs.items()}
    axes.bar(range(len(shares)), shares.values(), width=0.6, color=_BLUE, alpha=0.85)
    names = [f"{_up_to(margin)}\n{share:.0%}\nn={pairs[margin]:,}" for margin, share in shares.items()]
    axes.set_xticks(range(len(names)), names, fontsize=9 if len(names) < 8 else 7)
    axes.set_xlim(min(-0.6, 0.5 * len(names) - 2), max(len(names) - 0.4, 0.5 * len(names) + 1))
    axes.axhline(longer, color=_RED, linewidth=1.2, linestyle="--", label=f"the longer wins: {longer:.0%}")
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _length(axes: Any, found: Mapping[str, Any], *, points: Sequence[ScoredResponse]) -> None:
    within = found["within_prompt"]
    shown = "" if within is None else f": within a prompt {within:+.2f} (Spearman)"
    axes.set_title(f"Reward and length{shown}")
    axes.set_xlabel("length of the response (characters)")
    axes.set_ylabel("reward")
    chosen = points[:: -(-len(points) // MAX_POINTS)] if points else []
    axes.scatter(
        [p.chars for p in chosen],
        [p.reward for p in chosen],
        s=14 if len(chosen) < 500 else 7,
        color=_BLUE,
        alpha=0.6 if len(chosen) < 500 else 0.3,
        linewidths=0,
    )


def _ranks(axes: Any, points: Sequence[ScoredResponse]) -> None:
    """A box from the first to the third quartile, whiskers over nine in ten; it should fall from left to right."""
    axes.set_title("Reward by rank")
    axes.set_xlabel("rank that people gave the response (1 is best)")
    axes.set_ylabel("reward above its prompt's mean")
    leads: defaultdict[int, list[float]] = defaultdict(list)
    for p in points:
        for rank in p.ranks:
            leads[min(rank, MAX_RANKS)].append(p.lead)
    if not leads:
        _nothing(axes, "no ranked response")
        return
    ranks = sorted(leads)
    names = [f"{_up_to(rank)}\nn={len(leads[rank]):,}" for rank in ranks]
    axes.axhline(0, color=_GREY, linewidth=0.8, linestyle=":")
    axes.boxplot(
        [leads[r] for r in ranks],
        positions=range(len(ranks)),
        widths=0.55,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#e0e7ff", "edgecolor": _BLUE},
        medianprops={"color": _BLUE, "linewidth": 2},
        whiskerprops={"color": _GREY},
        capprops={"color": _GREY},
    )
    axes.set_xticks(range(len(ranks)), names, fontsize=9 if len(names) < 8 else 7)


def _up_to(number: int) -> str:
    return f"{number}+" if number == MAX_RANKS else str(number)


def _nothing(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)
