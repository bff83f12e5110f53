"""Training steps beside a peer's: the peer's best setting, the two gradients, then steps in turn, case by case."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case, read_case
from benchmarks.environment import environment
from benchmarks.sides import Side, SideFailed, Turns
from data.errors import UserError

PEER_PACKAGES = ("trl", "datasets")
VERSIONS = ("torch", "transformers", "peft", "trl", "datasets")
MANY_TOKENS = 10_000
"""Above so many tokens a step of the peer, two repeats are the default; below, three."""
QUICK = (Case(2, 16, 16), Case(4, 16, 16))


@dataclass(frozen=True)
class Benchmark:
    """What one comparison has of its own."""

    module: str
    """What `python -m` is given."""
    description: str
    """For --help."""
    workers: Mapping[str, str]
    """What a child process may be asked to do, and the module that does it."""
    measure: Callable[[Comparison], dict[str, Any]]
    """A case's figures."""
    columns: Mapping[str, str]
    """Of the table: a figure's name, and its title there."""


@dataclass(frozen=True)
class Turned:
    """What sides came to that worked in turn. `said`: when loaded; `steps`: after each, warm-ups left out."""

    said: Mapping[str, Mapping[str, Any]]
    steps: Mapping[str, Sequence[Mapping[str, Any]]]
    peaks: Mapping[str, int]
    """Most memory ever held, in bytes."""

    def median(self, side: str, name: str = "seconds") -> float:
        """Over the side's steps."""
        return statistics.median(step[name] for step in self.steps[side])


class Comparison:
    """One case, its sides each in a process of its own. `work`: what every side is told."""

    def __init__(self, benchmark: Benchmark, case: Case, options: argparse.Namespace, *, folder: str) -> None:
        self.case = case
        self.warmups: int = options.warmups
        self.repeats: int = options.repeats or (2 if case.pair_tokens > MANY_TOKENS else 3)
        self.work: dict[str, Any] = {
            "case": (case.k, case.p, case.r),
            "model": options.model,
            "workspace": str(options.workspace),
            "threads": options.threads,
            "steps": 2 * (self.warmups + self.repeats) + 1,
            "common": folder,
            "gradient": str(Path(folder, "gradient.safetensors")),
        }
        self._module = benchmark.module

    def tune(self) -> dict[str, Any]:
        """Give the peer its fastest setting of each kind; returns what was tried and taken."""
        with self._side("sweep") as side:
            side.loaded()
            swept = side.step()
            side.end()
        row: dict[str, Any] = {}
        self.work["settings"] = {}
        for kind, tried in swept.items():
            best = min(tried, key=lambda s: (s["seconds_per_pair"] or 0.0, s["micro_batch"]))
            self.note(f"{kind} at its best: {best['micro_batch']} pairs at a time, padding {best['padding']}")
            self.work["settings"][kind] = (best["micro_batch"], best["padding"])
            row |= {
                f"{kind}_micro_batch": best["micro_batch"],
                f"{kind}_padding": best["padding"],
                f"{kind}_sweep": tried,
            }
        return row

    def gradients(self) -> dict[str, Any]:
        """How far the gradients of both trainers are apart for one prompt, from the same weights."""
        with self._side("gradient_ours") as ours, self._side("gradient_peer") as peer:
            for side in (ours, peer):
                side.loaded()
            ours.step()  # leaves its gradient where the peer's process reads it
            ours.end()
            found = peer.step()
            peer.end()
        self.note(f"gradients differ by {found['max_grad_rel_err']:.1e} at most ({found['where']})")
        return {"max_grad_rel_err": found["max_grad_rel_err"], "parameters_compared": found["parameters"]}

    def take_turns(self, *names: str) -> Turned:
        """Let these sides work in turn, two steps each of which the second counts. All stay loaded."""
        with ExitStack() as stack:
            sides = [stack.enter_context(self._side(name)) for name in names]
            said = {side.name: side.loaded() for side in sides}
            found: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
            for turn in range(self.warmups + self.repeats):
                for side in sides:
                    side.step()  # who slept is slow at first: the system took its memory meanwhile
                    found[side.name].append(side.step())
                row = ", ".join(f"{name} {steps[-1]['seconds']:.2f} s" for name, steps in found.items())
                self.note(f"{'warm-up' if turn < self.warmups else 'step'} {turn + 1}: {row}")
            steps = {name: answers[self.warmups :] for name, answers in found.items()}
            return Turned(said, steps, peaks={side.name: side.end() for side in sides})

    def _side(self, name: str) -> Side:
        """A child process with a folder of its own."""
        folder = Path(self.work["common"], name)
        folder.mkdir()
        return Side(self._module, name, {**self.work, "folder": str(folder)})

    def note(self, text: str) -> None:
        """A line of progress."""
        print(f"{self.case}: {text}", file=sys.stderr, flush=True)


def measured(benchmark: Benchmark, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One case, as it stands in the JSON."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        comparison = Comparison(benchmark, case, options, folder=folder)
        found = benchmark.measure(comparison)
    counts = {"warmups": comparison.warmups, "repeats": comparison.repeats}
    return {"K": case.k, "P": case.p, "R": case.r, **found, **counts}


def table(cases: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """The cases for people."""
    lines = [f"{'K':>3}{'P':>5}{'R':>5}" + "".join(f"{title:>10}" for title in columns.values())]
    for case in cases:
        cells = [_cell(name, case[name]) for name in columns]
        lines.append(f"{case['K']:>3}{case['P']:>5}{case['R']:>5}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    if name.startswith("peak_rss"):
        return f"{value / 1e6:.0f}"
    if isinstance(value, int):
        return str(value)
    return f"{value:.1e}" if name == "max_grad_rel_err" else f"{value:.2f}"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 1 or more.")
    return int(text)


def _options(benchmark: Benchmark, flags: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {benchmark.module}",
        description=benchmark.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=read_case, nargs="+", metavar="K,P,R", help="responses, their tokens' numbers")
    parser.add_argument("--repeats", type=_positive, help="steps timed (3; 2 where the peer has many tokens)")
    parser.add_argument("--warmups", type=_positive, help="steps before them that are not counted (2)")
    parser.add_argument("--quick", action="store_true", help="tiny cases, once each: shows that it works")
    parser.add_argument("--model", default="smollm2-135m", help="a model folder, a hub id, or smollm2-135m")
    parser.add_argument("--workspace", type=Path, default=Path("var"), help="where smollm2-135m is kept")
    parser.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="of every side")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--worker", choices=benchmark.workers, help=argparse.SUPPRESS)
    options = parser.parse_args(flags)
    options.cases = options.cases or (QUICK if options.quick else CASES)
    options.warmups = options.warmups or (1 if options.quick else 2)
    options.repeats = options.repeats or (1 if options.quick else None)
    return options


def main(benchmark: Benchmark, flags: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code is 2 where the user has something to mend."""
    options = _options(benchmark, flags)
    try:
        if options.worker:
            work = importlib.import_module(f"benchmarks.{benchmark.workers[options.worker]}")
            getattr(work, options.worker)(Turns())
            return 0
        missing = [name for name in PEER_PACKAGES if find_spec(name) is None]
        if missing:
            raise UserError(
                f"{' and '.join(missing)} is not installed: there is no peer to compare with. "
                "Run `pip install -r requirements-bench.txt`."
            )
        cases = [measured(benchmark, case, options) for case in options.cases]
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
        print(table(cases, benchmark.columns))
        print(", ".join(f"{name} {value}" for name, value in surroundings.items()))
    return 0
