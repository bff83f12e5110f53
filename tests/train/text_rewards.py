"""Rewards as a user may give them to `--reward package.module:function`."""

from __future__ import annotations

import itertools

_calls = itertools.count()
_patience = itertools.count()


def letters(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """Share of small letters, in tenths."""
    return [10 * sum(c.islower() and c.isascii() for c in text) / max(len(text), 1) for text in responses]


def words(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """Length in characters."""
    return [float(len(text)) for text in responses]


def chance(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """Another number at every call."""
    return [float(next(_calls)) for _ in responses]


def broken(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """Fails on what a model wrote, not on the trial."""
    if responses == ["Yes.", "No."]:
        return [0.0, 0.0]
    raise ZeroDivisionError("no such word")


def breaks_later(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """Fails once it was called often enough for a checkpoint to be there."""
    if next(_patience) > 20:
        raise ValueError("out of patience")
    return letters(prompt, responses)


def nothing(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """No number."""
    return [float("nan") if responses != ["Yes.", "No."] else 0.0 for _ in responses]
