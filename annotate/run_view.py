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
    ours, longer = found["accuracy"], found["longer_wins"]["accuracy"]
    better = "agrees with people more often than" if ours > longer else "does not beat"
    bars = panel.bar(ours, name="This model", value=f"{ours:.1%}")
    bars += panel.bar(longer, name="The longer wins", value=f"{longer:.1%}", kind="baseline")
    measured = f"Measured on {panel.counted(found['pairs'], 'pair')} of {panel.counted(found['prompts'], 'prompt')} "
    sentence = f"{measured}that it never saw; it {better} the guess that the longer response is the better one."
    rows = [("Best response found", f"{found['top1']:.1%} of the rankings")] if found.get("top1") is not None else []
    rows.append(("Tied by people", f"{panel.counted(found['ties'], 'pair')}, not counted above"))
    rows.append(("Same score for both", f"{panel.counted(found['scored_ties'], 'pair')}, each counted as one half"))
    title = panel.title("Agreement with people")
    return f'{title}{bars}<p class="quiet more">{panel.escaped(sentence)}</p>{panel.facts(rows)}{account}'


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
