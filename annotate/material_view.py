"""What a training would learn from, in words: shown before a start, and the sentence that refuses one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from annotate import panel
from annotate.material import Material, Side
from data.errors import BadInput

_NO_REWARD_MODEL = (
    "PPO learns from the scores of a reward model: choose a finished one under Scored by, or train one first (What to "
    "train: Reward model)."
)

Row = tuple[str, str]


def material_view(material: Material, stage: str, settings: Mapping[str, Any]) -> str:
    """The counts that matter to a stage with these settings."""
    learns = _learns(stage, settings)
    if not _count(material.learned, learns) and not _count(material.held_out, learns):
        remedy = ("/data", "Import prompts") if learns == "prompts" else ("/", "Rank prompts")
        return panel.empty(_NOTHING[learns], remedy)
    rows = [("To learn from", _side(material.learned, learns)), ("Held out", _side(material.held_out, learns))]
    left = [(name, f"{count:,}, {what}") for name, count, what in _left_out(material, learns, settings) if count]
    return (
        panel.title("This run would see") + panel.facts([*rows, *left]) + _warning(material.learned, learns, settings)
    )


def check_material(material: Material, project: str, stage: str, settings: Mapping[str, Any]) -> None:
    """Raises BadInput where the stage would have nothing to learn from."""
    learns = _learns(stage, settings)
    if _count(material.learned, learns):
        lacking = _lacking(material.learned, settings) if learns == "prompts" else ""
        if lacking:
            raise BadInput(lacking)
        return
    if _count(material.held_out, learns):
        more = "add prompts" if learns == "prompts" else "rank more prompts"
        raise BadInput(f"All there is to learn from in '{project}' is held out. Lower the share held out, or {more}.")
    raise BadInput(f"There is nothing to learn from in '{project}' yet. {_NOTHING[learns]}")


_NOTHING = {
    "pairs": "No response is ranked above another one: rank some prompts.",
    "prompts": "There is no prompt to write a response to: import some.",
    "best": "No prompt has a best response that is acceptable: rank some prompts.",
    "bar": "No ranking has an acceptable bar, and KTO learns from nothing else: set it (|) while ranking, or choose "
    "another method.",
}


def _learns(stage: str, settings: Mapping[str, Any]) -> str:
    """What one example is: a prompt, a pair, a best response, or a response before or behind the bar."""
    if stage == "ppo":
        return "prompts"
    if stage == "sft":
        return "best"
    return "bar" if settings.get("loss") == "kto" else "pairs"


def _count(side: Side, learns: str) -> int:
    return {"prompts": side.different, "pairs": side.pairs, "best": side.best, "bar": side.judged}[learns]


def _side(side: Side, learns: str) -> str:
    if learns == "prompts":
        return f"{panel.counted(side.different, 'prompt')}, ranked or not"
    if learns == "best":
        return f"{panel.counted(side.best, 'best response')}, one a prompt"
    if learns == "pairs":
        return f"{panel.counted(side.pairs, 'pair')} of {panel.counted(side.prompts, 'prompt')}"
    disputed = f", {side.disputed:,} on both sides (used by the share of those who say so)" if side.disputed else ""
    before = panel.counted(side.acceptable, "response")
    return f"{before} before the acceptable bar, {side.unacceptable:,} behind it{disputed}"


def _left_out(material: Material, learns: str, settings: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    if learns == "prompts":
        return [("Repeated prompts", material.repeated, "left out: the same prompt is there already")]
    unranked = ("Prompts not ranked", material.without_ranking, "left out")
    if learns == "best":
        return [
            unranked,
            (
                "Ranked without a comparison",
                material.without_comparison,
                "left out: no response is better than another",
            ),
            ("Best response behind the bar", material.unacceptable, "left out: even the best is unacceptable"),
        ]
    if learns == "bar":
        return [unranked, ("Ranked without a bar", material.without_bar, "left out: nobody judged acceptability")]
    ties = "left out, as chosen" if settings.get("ties") == "drop" else "used as ties"
    return [
        ("Tied pairs", material.ties, ties),
        ("Unranked pairs", material.unranked, "left out: nobody compared them"),
        unranked,
    ]


def _warning(side: Side, learns: str, settings: Mapping[str, Any]) -> str:
    if learns == "bar":
        return _one_sided(side)
    lacking = _lacking(side, settings) if learns == "prompts" else ""
    return panel.note(lacking, "warning") if lacking else ""


def _lacking(side: Side, settings: Mapping[str, Any]) -> str:
    """What PPO lacks to begin: something to score what it writes, different prompts for a step; empty if nothing."""
    if not settings.get("reward"):
        return _NO_REWARD_MODEL
    asked = settings.get("per_device_train_batch_size") or 0
    if side.different >= asked:
        return ""
    return (
        f"A step takes {asked:,.0f} different prompts and there are {side.different:,} to learn from. Lower Prompts "
        "per step in the settings, or add prompts."
    )


def _one_sided(side: Side) -> str:
    """KTO weighs good responses against bad ones."""
    if not side.judged or (side.acceptable and side.unacceptable) or side.disputed:
        return ""
    where, missing = ("before", "behind") if side.acceptable else ("behind", "before")
    return panel.note(
        f"All of them stand {where} the bar. KTO learns from the difference: rank prompts with responses {missing} it.",
        "warning",
    )
