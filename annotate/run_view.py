"""One run, as a page shows it: where it stands, its curves, how good it turned out. Read from its files alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from annotate import panel
from annotate.curves import MAX_POINTS, curves
from train import jobs

STAGES = {"rm": "Reward model"}
"""The trainings a page offers, by the name that `train.jobs` knows them under."""

_ACCOUNT = {
    "without_ranking": "Prompts nobody ranked",
    "without_comparison": "Ranked prompts without a comparison",
    "unranked_pairs": "Pairs with an unranked response",
    "set_aside": "Skips and flags",
    "only_ties": "Prompts with ties only (used as ties)",
    "prompts_cut": "Prompts that lost their start",
    "responses_cut": "Responses that lost their start",
}
"""What training counts while it reads, in words."""

_NEAR = 0.03
"""Certainty and success no further apart than this are called the same."""
_MUCH, _FEW = 0.5, 5
"""A correlation with length above this is worth a warning, unless it comes from fewer prompts than this."""


def run_view(run: jobs.RunInfo) -> str:
    """The whole panel of a run."""
    drawn = curves(jobs.metrics(run.path, max_points=MAX_POINTS))
    return _head(run) + _standing(run) + drawn + (evaluation_view(run.evaluation) if run.evaluation else "")


def evaluation_view(evaluation: Mapping[str, Any]) -> str:
    """How often the model agrees with people on prompts it never saw, beside the simplest guess there is."""
    found = evaluation.get("eval")
    left_out = panel.facts(_left_out(evaluation.get("groups") or {}))
    account = panel.fold("What was left out or cut", left_out) if left_out else ""
    if not found or found.get("accuracy") is None:
        return panel.note("No held-out pair, so there is nothing to measure it on. Hold out more prompts.") + account
    sentences = f'<p class="quiet more">{panel.escaped(_verdict(found))}</p>'
    parts = [panel.title("Agreement with people"), _bars(found), sentences, panel.facts(_measures(found))]
    return "".join([*parts, _length_warning(found), _by_margin(found), _by_annotator(found), account])


def fingerprint(run: jobs.RunInfo) -> str:
    """Changes when the panel or the log would: a page that shows this one already needs nothing new."""
    sizes = (_stat(run.path / name) for name in ("status.json", "metrics.jsonl", "log.txt", "eval.json"))
    return " ".join([run.name, run.status.state, *sizes])


def run_address(run: jobs.RunInfo) -> str:
    """The run's own page in the app."""
    return f"/models?run={quote(run.name)}"


def accuracy_of(run: jobs.RunInfo) -> float | None:
    """Pair accuracy on held-out prompts; None while or where there is none."""
    found = (run.evaluation or {}).get("eval") or {}
    accuracy = found.get("accuracy")
    return float(accuracy) if accuracy is not None else None


def base_of(run: jobs.RunInfo) -> str:
    """The base model, a folder by its name."""
    model = str(run.config.get("model", "unknown"))
    return Path(model).name if model.startswith("/") else model


def stage_of(run: jobs.RunInfo) -> str:
    """The stage in words."""
    return STAGES.get(run.status.stage, run.status.stage)


def started(run: jobs.RunInfo) -> str:
    """When it started, in this computer's time."""
    at = _time(run.status.started_at)
    return f"{at.astimezone():%d %b %Y %H:%M}" if at else "unknown"


def duration(run: jobs.RunInfo) -> str:
    """How long it took, or takes so far."""
    begun = _time(run.status.started_at)
    ended = _time(run.status.finished_at) or (datetime.now(UTC) if run.status.state == "running" else None)
    return in_words((ended - begun).total_seconds()) if begun and ended else "unknown"


def in_words(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _bars(found: Mapping[str, Any]) -> str:
    """The model between the simplest guess and what people reach among themselves."""
    rows = [(found["accuracy"], "This model", ""), (found["longer_wins"]["accuracy"], "The longer wins", "baseline")]
    if found.get("annotator_agreement"):
        rows.append((found["annotator_agreement"]["agreement"], "Two people", "baseline"))
    return "".join(panel.bar(share, name=name, value=f"{share:.1%}", kind=kind) for share, name, kind in rows)


def _verdict(found: Mapping[str, Any]) -> str:
    better = (
        "agrees with people more often than"
        if found["accuracy"] > found["longer_wins"]["accuracy"]
        else "does not beat"
    )
    text = (
        f"Measured on {panel.counted(found['pairs'], 'pair')} of {panel.counted(found['prompts'], 'prompt')} that it "
        f"never saw; it {better} the guess that the longer response is the better one."
    )
    people = found.get("annotator_agreement")
    if people:
        text += (
            f" Where two people both preferred one response of a pair, it was the same one {people['agreement']:.1%} "
            f"of the time ({panel.counted(people['pairs'], 'time')} in all); hardly more can be asked of a model."
        )
    return text


def _measures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The other numbers in words; a run evaluated before one was measured goes without it."""
    rows = [("Best response found", f"{found['top1']:.1%} of the rankings")] if found.get("top1") is not None else []
    rows.append(("Tied by people", f"{panel.counted(found['ties'], 'pair')}, not counted above"))
    rows.append(("Same score for both", f"{panel.counted(found['scored_ties'], 'pair')}, each counted as one half"))
    if found.get("accuracy_with_ties") is not None and found["ties"]:
        threshold = found["tie_threshold"]
        near = f"scores no more than {threshold:.2g} apart" if threshold else "equal scores"
        rows.append(("With ties counted", f"{found['accuracy_with_ties']:.1%}, {near} taken as a tie"))
    if found.get("kendall_tau_b") is not None:
        scale = "1 is people's order, 0 is chance, -1 the reverse"
        rows.append(("Whole order", f"{found['kendall_tau_b']:.2f} (Kendall's tau: {scale})"))
    rows += _certainty(found.get("calibration") or {})
    within = (found.get("length") or {}).get("within_prompt")
    if within is not None:
        scale = "1: always prefers the longer response to a prompt, 0: whatever its length, -1: the shorter"
        rows.append(("Follows length", f"{within:.2f} ({scale})"))
    return rows


def _certainty(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The calibration error, for a reader who never heard of one."""
    if found.get("ece") is None:
        return []
    pairs = sum(b["pairs"] for b in found["bins"])
    sure = sum(b["pairs"] * b["predicted"] for b in found["bins"]) / pairs
    right = sum(b["pairs"] * b["observed"] for b in found["bins"]) / pairs
    judged = (
        "too sure of itself" if sure - right > _NEAR else "too unsure" if right - sure > _NEAR else "about as it should"
    )
    error = f"off by {100 * found['ece']:.0f} points on average (calibration error)"
    return [("How sure it is", f"{sure:.0%} sure on average and right in {right:.0%}: {judged}; {error}")]


def _length_warning(found: Mapping[str, Any]) -> str:
    length = found.get("length") or {}
    within = length.get("within_prompt")
    if within is None or abs(within) <= _MUCH or length.get("prompts", _FEW) < _FEW:
        return ""
    longer = "longer" if within > 0 else "shorter"
    return panel.note(
        f"Within a prompt its rewards mostly follow the length: the {longer} response tends to score higher. Unless "
        f"people judged so too, rank more prompts where the {longer} response is the worse one.",
        "warning",
    )


def _by_margin(found: Mapping[str, Any]) -> str:
    rows = found.get("by_margin") or []
    bars = [
        panel.bar(
            row["accuracy"],
            name=f"{panel.counted(row['margin'], 'rank')} ({panel.counted(row['pairs'], 'pair')})",
            value=f"{row['accuracy']:.1%}",
        )
        for row in rows
    ]
    return panel.title("By how far apart people put them") + "".join(bars) if bars else ""


def _by_annotator(found: Mapping[str, Any]) -> str:
    rows = found.get("by_annotator") or []
    cells = [
        [
            panel.escaped(row["annotator"]),
            f"{row['accuracy']:.1%}" if row["pairs"] else "ties only",
            f"{row['pairs']:,}",
        ]
        for row in rows
    ]
    return panel.fold("By annotator", panel.table(("Annotator", "Agreement", "Pairs"), cells)) if cells else ""


def _head(run: jobs.RunInfo) -> str:
    what = panel.escaped(f"{stage_of(run)} on {base_of(run)}")
    badge = panel.badge(run.status.state, run.status.state)
    return f'<div class="run-head"><h2>{panel.escaped(run.name)}</h2>{badge}<span class="quiet">{what}</span></div>'


def _standing(run: jobs.RunInfo) -> str:
    """Progress while it runs; afterwards how it ended."""
    status = run.status
    if status.state == "running":
        return _steps(status)
    if status.state == "done":
        return (
            f'<p class="quiet">{panel.escaped(f"{status.total_steps:,} steps in {duration(run)}, {started(run)}.")}</p>'
        )
    kind = "error" if status.state == "failed" else "warning"
    reached = f" Reached step {status.step:,} of {status.total_steps:,}." if status.total_steps else ""
    return panel.note(_sentence(status.message or status.state) + reached, kind)


def _steps(status: Any) -> str:
    share = 100 * status.step / status.total_steps if status.total_steps else 0
    step = f"Step {status.step:,} of {status.total_steps:,}" if status.total_steps else "Reading data and model"
    doing = status.message if status.message and status.message != "starting" else ""
    left = f"about {in_words(status.eta_s)} left" if status.eta_s is not None else doing
    return (
        f'<div class="steps"><span class="track"><span style="width:{share:.1f}%"></span></span>'
        f"<p><span>{panel.escaped(step)}</span><span>{panel.escaped(left)}</span></p></div>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _left_out(groups: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    train, held_out = groups.get("train", {}), groups.get("eval", {})
    return [
        (words, f"{train.get(key, 0):,} to train on, {held_out.get(key, 0):,} held out")
        for key, words in _ACCOUNT.items()
        if train.get(key) or held_out.get(key)
    ]


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _stat(path: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "-"
    return f"{stat.st_size}.{stat.st_mtime_ns}"
