"""One run, as a page shows it: where it stands, its curves, how good it turned out. Read from its files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from annotate import panel
from annotate.curves import MAX_POINTS, curves
from annotate.policy_view import (
    displacement_banner,
    dpo_view,
    is_displaced,
    perplexity_text,
    sft_view,
    tells_displacement,
)
from annotate.ppo_view import alarm_banner, is_alarmed, ppo_result, ppo_view, tells_alarm, to_inspect
from annotate.reward_view import reward_view
from train import jobs

STAGES = {"sft": "SFT", "rm": "Reward model", "dpo": "DPO", "ppo": "PPO"}
"""The trainings a page offers, by the name that `train.jobs` knows them under."""

_ACCOUNT = {
    "without_ranking": "Prompts nobody ranked",
    "without_comparison": "Ranked prompts without a comparison",
    "without_bar": "Ranked prompts without an acceptable bar",
    "without_response": "Conversations without a response",
    "unacceptable": "Prompts whose best response is behind the bar",
    "tied": "Prompts with several best responses, of which the first is used",
    "empty": "Empty texts",
    "turns_empty": "Empty responses",
    "unranked_pairs": "Pairs with an unranked response",
    "ties_dropped": "Tied pairs left out",
    "set_aside": "Skips and flags",
    "only_ties": "Prompts with ties only (used as ties)",
    "prompts_cut": "Prompts that lost their start",
    "responses_cut": "Responses that lost a part",
    "documents_cut": "Texts cut in pieces",
    "control_text": "Texts or prompts that spell a control token",
}
"""What training counts while it reads, in words."""


def run_view(run: jobs.RunInfo) -> str:
    """The whole panel of a run."""
    rows = jobs.metrics(run.path, max_points=MAX_POINTS)
    banner = displacement_banner(run, rows) + alarm_banner(run, rows)
    drawn = curves([*_before(run.evaluation), *rows], run.status.stage, settings=run.config)
    turned_out = evaluation_view(run.evaluation, stage=run.status.stage) if run.evaluation else ""
    return _head(run) + _standing(run) + banner + drawn + turned_out + to_inspect(run)


def evaluation_view(evaluation: Mapping[str, Any], *, stage: str = "rm") -> str:
    """How a stage turned out, then what was left out of it."""
    if stage == "sft":
        turned_out = sft_view(evaluation)
    elif stage == "dpo":
        turned_out = dpo_view(evaluation)
    elif stage == "ppo":
        turned_out = ppo_view(evaluation)
    else:
        turned_out = reward_view(evaluation.get("eval"))
    left_out = panel.facts(_left_out(evaluation.get("groups") or {}))
    return turned_out + (panel.fold("What was left out or cut", left_out) if left_out else "")


def fingerprint(run: jobs.RunInfo) -> str:
    """Changes when the panel or the log would: a page that shows this one already needs nothing new."""
    sizes = (_stat(run.path / name) for name in ("status.json", "metrics.jsonl", "log.txt", "eval.json"))
    return " ".join([run.name, run.status.state, *sizes])


def run_address(run: jobs.RunInfo) -> str:
    """The run's own page in the app."""
    return f"/models?run={quote(run.name)}"


def result_of(run: jobs.RunInfo) -> str:
    """What the stage measured on held-out prompts, in a word; empty while or where there is nothing."""
    found = (run.evaluation or {}).get("eval") or {}
    if run.status.stage == "sft":
        before, after = (found.get("start") or {}).get("perplexity"), found.get("perplexity")
        change = f"{perplexity_text(before)} → " if before is not None else ""
        return f"perplexity {change}{perplexity_text(after)}" if after is not None else ""
    if run.status.stage == "ppo":
        told = [ppo_result(found), "over-optimised" if is_alarmed(run.evaluation or {}) else ""]
        return ", ".join(filter(None, told))
    words = [f"{found['accuracy']:.1%} of pairs"] if found.get("accuracy") is not None else []
    return ", ".join([*words, *(["displaced"] if is_displaced(run.evaluation or {}) else [])])


def base_of(run: jobs.RunInfo) -> str:
    """The base model, a folder by its name, a run that was trained further by its own."""
    start = str(run.config.get("start") or run.config.get("model", "unknown"))
    path = Path(start)
    return (path.parent if path.name == "adapter" else path).name if path.is_absolute() else start


def is_merged(name: str) -> bool:
    """Whether a model folder is one that training keeps for itself: an SFT run merged into its base."""
    return re.fullmatch(r"merged-[0-9a-f]{16}", name) is not None


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
    told = tells_displacement(status.message) or tells_alarm(status.message)  # by the banner
    silent = status.message == "starting" or told
    doing = "" if silent else status.message
    left = f"about {in_words(status.eta_s)} left" if status.eta_s is not None else doing
    return (
        f'<div class="steps"><span class="track"><span style="width:{share:.1f}%"></span></span>'
        f"<p><span>{panel.escaped(step)}</span><span>{panel.escaped(left)}</span></p></div>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _left_out(groups: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    """`best`: counts of SFT on rankings, taken before the prompts came to a side."""
    train, held_out, best = (groups.get(name, {}) for name in ("train", "eval", "best"))
    return [
        (
            words,
            f"{best[key]:,}"
            if best.get(key)
            else f"{train.get(key, 0):,} to train on, {held_out.get(key, 0):,} held out",
        )
        for key, words in _ACCOUNT.items()
        if best.get(key) or train.get(key) or held_out.get(key)
    ]


def _before(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The perplexity before the first step, as a row of its own: `metrics.jsonl` begins with the first step."""
    start = ((evaluation or {}).get("eval") or {}).get("start") or {}
    return [{"step": 0, "eval_perplexity": start["perplexity"]}] if start.get("perplexity") is not None else []


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _stat(path: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "-"
    return f"{stat.st_size}.{stat.st_mtime_ns}"
