"""The order in which one annotator sees a prompt's responses, and labels under that order.

Shuffled per (annotator, prompt) from a stored seed, so position bias averages out and a reload shows the same order.
"""

from __future__ import annotations

import hashlib
import secrets


def new_seed() -> int:
    """A seed that fits a 32-bit signed column."""
    return secrets.randbelow(2**31)


def shown_order(seed: int, responses: int) -> tuple[int, ...]:
    """File-order numbers 1…K in the order shown: the first one carries the label A1 on screen.

    Sorted by a hash instead of Python's `random`, so that a stored seed means the same order in every version.
    """
    return tuple(sorted(range(1, responses + 1), key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest()))


def shown_labels(order: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse of an order: entry n-1 is the place on screen of file-order number n."""
    return tuple(order.index(n) + 1 for n in range(1, len(order) + 1))
