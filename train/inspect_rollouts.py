"""`python -m train inspect RUN`: one response that PPO learned from, token by token. Loads no model."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.errors import BadInput, NotFound
from train.command_configs import InspectConfig
from train.rollout_files import Rollouts, file_of, read_rollouts, steps, visible, visible_lines
from train.run import read_status

LEAST_WIDTH = 110
"""Characters across, also on a narrower terminal: a cut number would be a wrong one."""
_UNLIMITED = 100_000
_MAX_TOKEN_CHARS = 24


class _Column(NamedTuple):
    """A number of each token. `center`: where it is neither good nor bad; None is never coloured."""

    name: str
    head: str
    center: float | None = None


_COLUMNS = (
    _Column("log_prob", "log-prob"),
    _Column("reference_log_prob", "reference"),
    _Column("kl", "KL", 0.0),
    _Column("reward", "reward", 0.0),
    _Column("value", "value"),
    _Column("return", "return"),
    _Column("advantage", "advantage", 0.0),
    _Column("ratio", "ratio", 1.0),
)


def main(config: InspectConfig) -> str:
    """The response as a table, coloured on a terminal, or as one JSON object."""
    run = Path(config.model)
    rollouts = read_rollouts(file_of(run, _step(run, config.step)))
    if config.response >= rollouts.responses:
        raise BadInput(
            f"--response {config.response}: step {rollouts.step} has {rollouts.responses} responses, 0 to "
            f"{rollouts.responses - 1}. Choose one of them."
        )
    if config.json:
        return json.dumps(as_object(rollouts, config.response, run=run), ensure_ascii=False, allow_nan=False)
    return drawn(rollouts, config.response, run=run, terminal=sys.stdout.isatty())


def _step(run: Path, asked: int) -> int:
    """The step to show. Raises NotFound or BadInput where it is not there."""
    stage = read_status(run).stage
    if stage != "ppo":
        raise BadInput(f"{run}: a run of {stage}, and only ppo keeps rollouts. Give a run of `python -m train ppo`.")
    kept = steps(run)
    if not kept:
        raise NotFound(
            f"{run}: no rollouts yet. They come with the first step, unless the run was started with --inspect_steps 0."
        )
    if asked and asked not in kept:
        near = min(kept, key=lambda step: abs(step - asked))
        raise NotFound(
            f"--step {asked}: not among the {len(kept)} steps of {run} that were kept, {kept[0]} to {kept[-1]}. The "
            f"nearest is {near}."
        )
    return asked or kept[-1]


def as_object(rollouts: Rollouts, response: int, *, run: Path) -> dict[str, Any]:
    """All there is to know of one response."""
    tokens = rollouts.tokens(response)
    shared = ("response", "prompt_id", "score", "gold", "finished")
    return {
        "run": str(run),
        "step": rollouts.step,
        "kl_coef": rollouts.kl_coef,
        "responses": rollouts.responses,
        **{name: _finite(tokens[0][name]) for name in shared},
        "prompt": [dict(message) for message in rollouts.prompt_of(response)],
        "tokens": [{k: _finite(v) for k, v in token.items() if k not in shared} for token in tokens],
    }


def drawn(rollouts: Rollouts, response: int, *, run: Path, terminal: bool) -> str:
    """What is said of the response as a whole, then a row a token."""
    tokens = rollouts.tokens(response)
    out = io.StringIO()
    width = max(Console().size.width, LEAST_WIDTH) if terminal else _UNLIMITED
    console = Console(file=out, width=width, force_terminal=terminal, legacy_windows=False, highlight=False)
    for line in _head(rollouts, response, tokens, run=run):
        console.print(line, soft_wrap=True)
    console.print(_table(tokens, rollouts))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def _head(rollouts: Rollouts, response: int, tokens: Sequence[Mapping[str, Any]], *, run: Path) -> list[Text]:
    first = tokens[0]
    gold = "" if first["gold"] is None else f", gold {first['gold']:+.3f}"
    ended = "ended by EOS" if first["finished"] else "cut off"
    kl = sum(token["kl"] for token in tokens)
    lines = [
        Text(f"{run}, step {rollouts.step}, response {response} (of 0 to {rollouts.responses - 1})", style="bold"),
        Text(f"reward {first['score']:+.3f}{gold}, {len(tokens)} tokens, {ended}"),
        Text(f"KL {kl:+.3f} nats, taken off at {rollouts.kl_coef:g} a nat"),
    ]
    said = [*rollouts.prompt_of(response), {"role": "response", "content": "".join(t["text"] for t in tokens)}]
    for message in said:
        lines.append(Text.assemble((f"{visible(message['role'])}: ", "bold"), visible_lines(message["content"])))
    return lines


def _table(tokens: Sequence[Mapping[str, Any]], rollouts: Rollouts) -> Table:
    """Columns without a number, as the values of a run without a critic, are left out."""
    columns = [c for c in _COLUMNS if any(token[c.name] is not None for token in tokens)]
    scales = {c.name: _scale(rollouts, c) for c in columns}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True)
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    table.add_column("learned", no_wrap=True)
    for number, token in enumerate(tokens):
        numbers = [_number(token[c.name], c, scales[c.name]) for c in columns]
        table.add_row(str(number), _token(token["text"]), *numbers, "yes" if token["mask"] else "no")
    return table


def _token(text: str) -> Text:
    """In quotes, so that spaces are seen; a part of a letter has no text of its own."""
    shown = visible(text)
    cut = shown if len(shown) <= _MAX_TOKEN_CHARS else f"{shown[: _MAX_TOKEN_CHARS - 1]}…"
    return Text(f"'{cut}'" if shown else "(part)")


def _scale(rollouts: Rollouts, column: _Column) -> float:
    """A distance from the center that few of the step's tokens exceed."""
    if column.center is None:
        return 0.0
    return float((rollouts.frame[column.name] - column.center).abs().quantile(0.9))


def _number(value: float | None, column: _Column, scale: float) -> Text:
    """Blue above the center and red below, bold where few are as far away."""
    if value is None:
        return Text("")
    shown = Text(f"{value:.3f}" if column.center == 1 or column.center is None else f"{value:+.3f}")
    if column.center is None or not scale or not math.isfinite(value) or abs(value - column.center) < 0.1 * scale:
        return shown
    color = "blue" if value > column.center else "red"
    shown.stylize(f"bold {color}" if abs(value - column.center) > scale else color)
    return shown


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
