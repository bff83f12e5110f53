"""Stop when asked (SIGTERM, Ctrl-C), at once where nothing can be lost, else at the next safe point."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The process was asked to stop. `exit_code` is the shell's 128 + signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class Interrupt:
    """While entered, a signal raises Stopped in the main thread; inside `hold` … `release` it waits for `release`."""

    def __init__(self) -> None:
        self._held = False
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """From here on weights, optimiser state or files change together: do not break in."""
        self._held = True

    def release(self) -> None:
        """A safe point. Raises Stopped if a signal came meanwhile."""
        self._held = bool(self._asked)  # a second signal must not break the clean-up
        if self._asked:
            raise Stopped(self._asked)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if not self._held:
            self._held = True  # as in `release`
            raise Stopped(number)
