"""Seconds and memory of a reward model's training step beside TRL's RewardTrainer on the expanded pairs.

One step is one prompt: for us its group, for the peer all K(K-1)/2 pairs by gradient accumulation, at its fastest
micro-batch. Both train the same model under the same adapters in float32 on the CPU, turn by turn, each in a process
of its own. `bare` is one row of our tokens, forward and backward, without a trainer.

pip install -r requirements-bench.txt
python -m benchmarks.rm --json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.rm_cases import CASES, Case, read_case
from benchmarks.sides import Side, SideFailed, Turns
from data.errors import UserError

PEER_PACKAGES = ("trl", "datasets")
VERSIONS = ("torch", "transformers", "peft", "trl", "datasets")
WORKERS = {
    "ours": "rm_ours",
    "bare": "rm_ours",
    "gradient_ours": "rm_ours",
    "peer": "rm_peer",
    "gradient_peer": "rm_peer",
    "sweep": "rm_peer",
}
"""What a child process may be asked to do, and the module that does it."""
MANY_TOKENS = 10_000
"""Above so many tokens a step of the peer, two repeats are the default; below, three."""
QUICK = (Case(2, 16, 16), Case(4, 16, 16))
COLUMNS = {
    "seconds_ours": "ours s",
    "seconds_peer": "peer s",
    "ratio": "ratio",
    "token_ratio": "tokens",
    "bare_ratio": "bare",
    "peak_rss_ours": "ours MB",
    "peak_rss_peer": "peer MB",
    "max_grad_rel_err": "grad err",
}


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One case: the peer's best setting, the two gradients, then steps in turn."""
    repeats = options.repeats or (2 if case.pair_tokens > MANY_TOKENS else 3)
    with tempfile.TemporaryDirectory(prefix="rm-benchmark-") as folder:
        work = {
            "case": (case.k, case.p, case.r),
            "model": options.model,
            "workspace": str(options.workspace),
            "threads": options.threads,
            "steps": options.warmups + repeats + 1,
            "gradient": str(Path(folder, "gradient.safetensors")),
        }
        swept = swept_settings(work, folder=folder)
        best = min(swept, key=lambda s: (s["seconds_per_pair"] or 0.0, s["micro_batch"]))
        note(case, f"peer at its best: {best['micro_batch']} pairs at a time, padding {best['padding']}")
        work |= {"micro_batch": best["micro_batch"], "padding": best["padding"]}
        gradient = compared_gradients(work, folder=folder)
        note(case, f"gradients differ by {gradient['max_grad_rel_err']:.1e} at most ({gradient['where']})")
        timed = take_turns(case, work, folder=folder, warmups=options.warmups, repeats=repeats)
    seconds = timed["seconds"]
    return {
        "K": case.k,
        "P": case.p,
        "R": case.r,
        **{f"seconds_{name}": round(found, 4) for name, found in seconds.items()},
        "ratio": round(seconds["peer"] / seconds["ours"], 3),
        "token_ratio": round(case.pair_tokens / case.group_tokens, 3),
        "bare_ratio": round(seconds["bare"] / seconds["ours"], 3),
        "peak_rss_ours": timed["peaks"]["ours"],
        "peak_rss_peer": timed["peaks"]["peer"],
        "max_grad_rel_err": gradient["max_grad_rel_err"],
        "parameters_compared": gradient["parameters"],
        "layout": timed["layout"],
        "peer_micro_batch": best["micro_batch"],
        "peer_padding": best["padding"],
        "peer_sweep": swept,
        "warmups": options.warmups,
        "repeats": repeats,
    }


def swept_settings(work: Mapping[str, Any], *, folder: str) -> list[dict[str, Any]]:
    """The peer's settings, each with its seconds per pair."""
    with _side("sweep", work, folder=folder) as side:
        side.loaded()
        settings: list[dict[str, Any]] = side.step()["settings"]
        side.end()
        return settings


def compared_gradients(work: Mapping[str, Any], *, folder: str) -> dict[str, Any]:
    """How far the gradients of both trainers are apart for one prompt, from the same weights."""
    with _side("gradient_ours", work, folder=folder) as ours, _side("gradient_peer", work, folder=folder) as peer:
        for side in (ours, peer):
            side.loaded()
        ours.step()  # leaves its gradient where the peer's process reads it
        ours.end()
        found = peer.step()
        peer.end()
        return found


def take_turns(case: Case, work: Mapping[str, Any], *, folder: str, warmups: int, repeats: int) -> dict[str, Any]:
    """Median seconds of a step and peak memory of each side. All stay loaded; one works while the others sleep."""
    with ExitStack() as stack:
        sides = [stack.enter_context(_side(name, work, folder=folder)) for name in ("ours", "peer", "bare")]
        said = {side.name: side.loaded() for side in sides}
        found: dict[str, list[float]] = {side.name: [] for side in sides}
        for turn in range(warmups + repeats):
            for side in sides:
                found[side.name].append(side.step()["seconds"])
            row = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in found.items())
            note(case, f"{'warm-up' if turn < warmups else 'step'} {turn + 1}: {row}")
        return {
            "seconds": {name: statistics.median(seconds[warmups:]) for name, seconds in found.items()},
            "layout": said["ours"]["layout"],
            "peaks": {side.name: side.end() for side in sides},
        }


def _side(name: str, work: Mapping[str, Any], *, folder: str) -> Side:
    """A child process with a folder of its own."""
    return Side("benchmarks.rm", name, {**work, "folder": str(Path(folder, name))})


def note(case: Case, text: str) -> None:
    """A line of progress."""
    print(f"{case}: {text}", file=sys.stderr, flush=True)


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The cases for people: `ratio` is peer over ours in seconds, `tokens` in tokens, `bare` the bare row over ours."""
    lines = [f"{'K':>3}{'P':>5}{'R':>5}" + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for case in cases:
        cells = [_cell(name, case[name]) for name in COLUMNS]
        lines.append(f"{case['K']:>3}{case['P']:>5}{case['R']:>5}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    if name.startswith("peak_rss"):
        return f"{value / 1e6:.0f}"
    return f"{value:.1e}" if name == "max_grad_rel_err" else f"{value:.2f}"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 1 or more.")
    return int(text)


def _options(flags: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=read_case, nargs="+", metavar="K,P,R", help="responses, their tokens' numbers")
    parser.add_argument("--repeats", type=_positive, help="steps timed (3; 2 where the peer has many tokens)")
    parser.add_argument("--warmups", type=_positive, help="steps before them that are not counted (2)")
    parser.add_argument("--quick", action="store_true", help="tiny cases, once each: shows that it works")
    parser.add_argument("--model", default="smollm2-135m", help="a model folder, a hub id, or smollm2-135m")
    parser.add_argument("--workspace", type=Path, default=Path("var"), help="where smollm2-135m is kept")
    parser.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="of every side")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args(flags)
    options.cases = options.cases or (QUICK if options.quick else CASES)
    options.warmups = options.warmups or (1 if options.quick else 2)
    options.repeats = options.repeats or (1 if options.quick else None)
    return options


def main(flags: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code is 2 where the user has something to mend."""
    options = _options(flags)
    try:
        if options.worker:
            work = importlib.import_module(f"benchmarks.{WORKERS[options.worker]}")
            getattr(work, options.worker)(Turns())
            return 0
        missing = [name for name in PEER_PACKAGES if find_spec(name) is None]
        if missing:
            raise UserError(
                f"{' and '.join(missing)} is not installed: there is no peer to compare with. "
                "Run `pip install -r requirements-bench.txt`."
            )
        cases = [measure(case, options) for case in options.cases]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SideFailed as failed:
        if failed.exit_code == 2:  # it has said in a sentence what to mend
            return 2
        print(f"error: {failed}; its words are above", file=sys.stderr)
        return 1
    surroundings = {**environment(), **{name: version(name) for name in VERSIONS}, "threads": options.threads}
    if options.json:
        print(json.dumps({"cases": cases, "environment": surroundings}))
    else:
        print(table(cases))
        print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
