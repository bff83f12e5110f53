"""Metrics for another library to draw, beside our own `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.errors import BadInput

PROJECT = "rankwise"


def check(name: str) -> None:
    """Raises BadInput where the library called `name` is not installed; `none` needs none."""
    if name == "none":
        return
    try:
        version(name)  # not an import: a folder of that name here would pass for it
    except PackageNotFoundError:
        raise BadInput(
            f"--report_to {name}: {name} is not installed. Install it with `pip install {name}`, or leave the flag out."
        ) from None


def settings(name: str, run: Path) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments`, which have no place for TensorBoard's folder: see `callbacks`."""
    if name in ("none", "tensorboard"):
        return {"report_to": "none"}
    return {"report_to": name, "run_name": run.resolve().name, "project": PROJECT}


def callbacks(name: str, run: Path) -> list[Any]:
    """Callbacks of the `Trainer` that go with those settings: TensorBoard's, which writes to RUN/tensorboard."""
    if name != "tensorboard":
        return []
    from transformers.integrations.integration_utils import TensorBoardCallback

    callback = TensorBoardCallback()  # type: ignore[no-untyped-call]
    callback.logging_dir = str(run / "tensorboard")  # else its name would hold a date and this machine's name
    return [callback]
