"""How a model trained by a reward (PPO, RLOO, GRPO) turned out, as a page shows it; its alarm; what it writes now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from annotate import panel
from annotate.curves import short
from train import jobs

_ALARM, _BUDGET = "over-optimisation:", "budget:"
"""How the sentences of the alarm and of a spent budget begin."""
_FEW = 2
"""Samples that are shown at once; the others wait in a fold."""
_REMEDY = "On the Train page: a higher KL weight, fewer steps, or a reward model that has seen what it writes now."
_UNMEASURED = "not measured"
_ROWS = (
    ("reward", "Reward", "{:+.3f}"),
    ("gold", "Second judge", "{:+.3f}"),
    ("kl", "KL from the start, nats a response", "{:.2f}"),
    ("tokens", "Length, tokens", "{:.0f}"),
    ("finished", "End by themselves", "{:.0%}"),
    ("repetition", "Repeated text", "{:.0%}"),
)
_CRITICS = {"copy of reward": "begins as a copy of the reward model", "fresh": "begins from nothing"}


def ppo_view(evaluation: Mapping[str, Any]) -> str:
    """Held-out prompts answered at the start and at the end, side by side; then some of these answers."""
    found = evaluation.get("eval") or {}
    if found.get("reward") is None:
        turned_out = panel.note("No prompt was held out, so there is nothing to measure it on. Hold out more prompts.")
    else:
        turned_out = _compared(found, found.get("start") or {})
    return turned_out + _samples(evaluation.get("samples") or []) + panel.facts(_about(evaluation))


def ppo_result(found: Mapping[str, Any]) -> str:
    """The reward before and after, in a word. `found`: the part `eval` of `eval.json`."""
    if found.get("reward") is None:
        return ""
    before = (found.get("start") or {}).get("reward")
    return "reward " + (f"{before:+.2f} → " if before is not None else "") + f"{found['reward']:+.2f}"


def is_alarmed(evaluation: Mapping[str, Any]) -> bool:
    """Whether the alarm rang."""
    return (evaluation.get("alarm") or {}).get("step") is not None


def alarm_banner(run: jobs.RunInfo, rows: Sequence[Mapping[str, Any]]) -> str:
    """What a run says when its reward is being fooled, or its KL budget is spent; empty where all is well.

    `rows`: of `metrics.jsonl`, which know it of a run without an evaluation.
    """
    message = run.status.message
    over = (run.evaluation or {}).get("budget") or (message if message.startswith(_BUDGET) else "")
    spent = panel.banner("KL budget:", over.removeprefix(_BUDGET).strip()) if over else ""
    end = (run.evaluation or {}).get("alarm") or {}
    said = end.get("message") or (message if message.startswith(_ALARM) else "")
    step = end.get("step")
    if step is None and not run.evaluation:
        step = next((row["step"] for row in rows if row.get("alarm")), None)
    if step is None and not said:
        return spent
    text = said.removeprefix(_ALARM).strip() or f"at step {step:,} the alarm went off; the log says why."
    stopped = " The training ended there, as asked." if end.get("stopped") else ""
    return spent + panel.banner("Over-optimisation:", f"{text}{stopped} {_REMEDY}")


def tells_alarm(message: str) -> bool:
    """Whether it is the alarm that speaks in a run's status."""
    return message.startswith((_ALARM, _BUDGET))


def to_inspect(run: jobs.RunInfo) -> str:
    """A link to the run's tokens, once there are some."""
    if not jobs.rollout_steps(run.path):
        return ""
    return (
        f'<p class="more">{panel.link(f"/inspect?run={quote(run.name)}", "Look at what it wrote, token by token")}</p>'
    )


def _compared(found: Mapping[str, Any], start: Mapping[str, Any]) -> str:
    rows = [
        [panel.escaped(words), _number(start.get(name), form), _number(found.get(name), form)]
        for name, words, form in _ROWS
        if found.get(name) is not None
    ]
    table = panel.table(["", "Before", "After"], rows)
    measured = f"Measured on its answers to {panel.counted(found['prompts'], 'prompt')} that it never learned from."
    return panel.title("What it came to") + table + _quiet(f"{measured} {_verdict(found, start)}".strip())


def _number(value: float | None, form: str) -> str:
    return _UNMEASURED if value is None else form.format(value)


def _verdict(found: Mapping[str, Any], start: Mapping[str, Any]) -> str:
    """How far the reward moved, in deviations of the start; and whether the second judge agrees."""
    if start.get("reward") is None:
        return ""
    gain, spread = found["reward"] - start["reward"], start.get("reward_std") or 0.0
    size = f", {abs(gain) / spread:.1f} standard deviations of the start" if spread else ""
    text = f"The reward {'rose' if gain > 0 else 'fell'} by {short(abs(gain))}{size}."
    # Of a difference of two means; twice that is what chance brings in one case of twenty.
    error = math.hypot(spread, found.get("reward_std") or 0.0) / math.sqrt(found["prompts"])
    if abs(gain) < 2 * error:
        return f"{text} On so few prompts that may be chance: give it more steps, or hold out more prompts."
    if gain <= 0:
        return f"{text} Give it more steps, or a lower KL weight."
    gold, before = found.get("gold"), start.get("gold")
    if gold is None or before is None:
        return f"{text} Read the answers below: a reward can be fooled."
    if gold > before:
        return f"{text} The second judge, which it never learned from, agrees that the answers are better."
    return f"{text} The second judge does not agree that the answers are better: the reward may have been fooled."


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return ""
    cards = [_sample(sample) for sample in samples]
    rest = panel.fold(f"{len(cards) - _FEW} more", _cards(cards[_FEW:])) if len(cards) > _FEW else ""
    return panel.title("What it wrote before and after") + _cards(cards[:_FEW]) + rest


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="ranked">{"".join(cards)}</div>'


def _sample(sample: Mapping[str, Any]) -> str:
    """One prompt with both answers."""
    answers = "".join(
        f'<div><span class="quiet">{name}, reward {_number(sample.get(f"{key}_reward"), "{:+.2f}")}</span>'
        f'<p class="text">{_text(sample.get(key)) or "<em>(nothing)</em>"}</p></div>'
        for key, name in (("start", "Before"), ("end", "After"))
    )
    return f'<div><p class="asked">{_text(sample.get("prompt"))}</p><div class="pair">{answers}</div></div>'


def _text(written: str | None) -> str:
    return panel.escaped(jobs.visible_lines(written or ""))


def _about(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    roles, prompts = evaluation.get("roles") or {}, evaluation.get("prompts") or {}
    rows = []
    if roles.get("reward"):
        rows.append(("Reward model", f"{roles['reward']}{_memory(roles['reward'])}"))
    if roles:
        rows.append(("Critic", _CRITICS.get(roles.get("critic") or "", roles.get("critic") or "none")))
    if prompts:
        left = [f"{prompts[key]:,} {words}" for key, words in _LEFT_OUT if prompts.get(key)]
        counts = f"{prompts.get('train', 0):,} to learn from, {prompts.get('eval', 0):,} held out"
        rows.append(("Prompts", counts + (f"; left out: {', '.join(left)}" if left else "")))
    return rows


_LEFT_OUT = (("too_long", "too long"), ("repeated", "repeated"))


def _memory(kind: str) -> str:
    return ", with the actor's own base" if kind == "shared base" else ""


def _quiet(text: str) -> str:
    return f'<p class="quiet more">{panel.escaped(text)}</p>'
