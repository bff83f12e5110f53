"""Rules that settings of several stages share. Each raises BadInput with the flag's name. Free of torch."""

from __future__ import annotations

import math

from data.errors import BadInput


def check_flips(share: float) -> None:
    """Of labels, fewer than half: more would teach the opposite."""
    if not 0 <= share < 0.5:
        raise BadInput(f"--label_smoothing {share}: must be 0 or more and less than 0.5.")


def at_least(config: object, least: int, *names: str) -> None:
    """Finite, and no less than that."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= least):
            raise BadInput(f"--{name} {value}: must be {least} or more.")


def positive(config: object, *names: str) -> None:
    """Finite, and more than 0."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"--{name} {value}: must be more than 0.")


def share(config: object, *names: str) -> None:
    """From 0 to less than 1."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise BadInput(f"--{name} {value}: a share is at least 0 and less than 1.")
