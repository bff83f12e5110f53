"""The settings of a run that is to be continued."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from data.errors import BadInput
from train.checkpoints import good_to_resume
from train.run import checkpoint_step, read_config, read_status


def saved_config(folder: str, *, stage: str, kind: type[Any]) -> Any:
    """The config of the run in `folder`. Raises BadInput or NotFound where it cannot be continued."""
    path = Path(folder)
    status = read_status(path)
    if status.stage != stage:
        raise BadInput(f"--resume {path}: this is a run of '{status.stage}'. Continue it with that stage.")
    if status.state == "done":
        raise BadInput(f"--resume {path}: the run is done. Start a new one with another --output.")
    if not checkpoint_step(path):  # none in its full size: so the reading ends at once, and says why
        good_to_resume(path)
    saved = read_config(path)
    values = {f.name: saved[f.name] for f in fields(kind) if f.name in saved}
    for field in fields(kind):
        if field.type in ("Path", "Path | None") and values.get(field.name) is not None:
            values[field.name] = Path(values[field.name])
    return kind(**{**values, "output": path, "resume": path})


def check_unchanged(saved: Any, asked: Any) -> None:
    """Refuse flags that differ from the run's own. Raises BadInput."""
    for field in fields(saved):
        before, now = getattr(saved, field.name), getattr(asked, field.name)
        if before != now and field.name not in ("output", "resume"):
            raise BadInput(
                f"--{field.name} {now}: the run was started with {before}, and a resumed run ends as if it had never "
                "stopped. Leave the flag out, or start a new run."
            )
