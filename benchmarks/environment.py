"""What a figure was measured on; stands beside every figure."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys


def environment() -> dict[str, str | int]:
    """Python, machine and SQLite of this run."""
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cpus": os.cpu_count() or 0,
        "sqlite": sqlite3.sqlite_version,
    }
