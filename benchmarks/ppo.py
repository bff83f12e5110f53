"""Seconds, memory and reward of a PPO update beside TRL's PPOTrainer, and our memory beside our own SFT's.

One update is a batch of responses, written, scored, and learned from four times. Both sides have the same model, policy
adapters, reward model, prompts and numbers, in float32 on the CPU. Prompts are made up, of half to all of P tokens, and
every response is as long as it may be, for TRL's have no end of their own by default; with --prompts they are people's,
of up to P tokens, and a response ends where the model ends it (TRL's stop_token="eos"). The sides update turn by turn,
each in a process of its own, the peer with the sizes of batches that it is fastest with and nothing recomputed. TRL
trains the whole value model, as in its own example; --peer-critic lora gives it adapters there, too. `gradient`: one
pass over the same responses from the same weights must give the same gradient in both, or nothing here would mean
anything.

Of the table, `ratio` is peer over ours in seconds, `tok` the tokens that an update wrote, `memory` our peak over the
peer's, `lean` our peak over the peer's with one response at a time, `of SFT` our peak over that of our SFT with as many
tokens a step and its own default at a time, `alike` the same with PPO's at a time. The rewards are those of the first
and of the last update's responses, which have the same prompts.

TRL removed this trainer in 1.13.0. The last one lives in an environment of its own:

python3 -m venv ../ppo-peer
../ppo-peer/bin/pip install -r requirements-bench-ppo.txt
python -m benchmarks.ppo --peer-python ../ppo-peer/bin/python --json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.sides import Side, SideFailed, Turns
from benchmarks.steps import Turned
from data.errors import BadInput, UserError

MODULE = "benchmarks.ppo"
PEER_PYTHON = "RANKWISE_PPO_PEER_PYTHON"
TRL = "1.12.0"
OURS = {
    "prepare": "ppo_work",
    "ours": "ppo_ours",
    "gradient_ours": "ppo_ours",
    "sft": "ppo_ours",
    "sft_alike": "ppo_ours",
}
PEERS = {"peer": "ppo_peer", "peer_lean": "ppo_peer", "gradient_peer": "ppo_peer", "sweep": "ppo_peer"}
VERSIONS = ("torch", "transformers", "peft")
NOISE = 1.03
"""Sizes of the peer within 3% of its fastest count as equally fast."""
COLUMNS = {
    "seconds_ours": "ours s",
    "seconds_peer": "peer s",
    "ratio": "ratio",
    "written_ours": "ours tok",
    "written_peer": "peer tok",
    "peak_rss_ours": "ours MB",
    "peak_rss_peer": "peer MB",
    "memory_ratio": "memory",
    "memory_ratio_lean": "lean",
    "peak_over_sft": "of SFT",
    "peak_over_sft_alike": "alike",
    "reward_start_ours": "ours from",
    "reward_end_ours": "to",
    "reward_start_peer": "peer from",
    "reward_end_peer": "to",
    "max_grad_rel_err": "gradient",
}


@dataclass(frozen=True)
class PpoCase:
    """An update: `prompts` of up to `p` tokens with `samples` responses each, of `r` tokens, real ones of up to `r`."""

    prompts: int
    samples: int
    p: int
    r: int

    @property
    def responses(self) -> int:
        """Of an update."""
        return self.prompts * self.samples

    def __str__(self) -> str:
        return f"{self.prompts} prompts x {self.samples} of P={self.p} R={self.r}"


CASES = (PpoCase(16, 1, 128, 64), PpoCase(4, 4, 128, 64))
QUICK = (PpoCase(4, 1, 16, 8), PpoCase(2, 2, 16, 8))


class Comparison:
    """One case, its sides each in a process of its own. `work`: what every side is told."""

    def __init__(self, case: PpoCase, options: argparse.Namespace, *, folder: str) -> None:
        self.case = case
        self.warmups: int = options.warmups
        self.peer_python: str = options.peer_python
        self._sizes: tuple[int, int] | None = options.peer_sizes
        self.work: dict[str, Any] = {
            "case": asdict(case),
            "responses": case.responses,
            "samples": case.samples,
            "model": options.model,
            "workspace": str(options.workspace),
            "threads": options.threads,
            "updates": options.warmups + options.updates,
            "learning_rate": options.learning_rate,
            "peer_critic": options.peer_critic,
            "prompts_file": options.prompts and str(Path(options.prompts).resolve()),
            "common": folder,
            "gradient": str(Path(folder, "gradient.safetensors")),
        }

    def prepare(self) -> None:
        """Make what both sides are given."""
        with self._side("prepare") as side:
            side.loaded()
            self.work |= side.step()
            side.end()
        self.work["passes"] = self.work["settings"]["num_ppo_epochs"]

    def tune(self) -> dict[str, Any]:
        """Give the peer the sizes that were asked for, or its fastest; returns what was tried and taken."""
        if self._sizes:
            micro_batch, written = self._sizes
            self.work["peer"] = {"micro_batch": micro_batch, "written": written}
            return {"peer_micro_batch": micro_batch, "peer_written": written, "peer_sweep": []}
        with self._side("sweep") as side:
            side.loaded()
            tried = side.step()["sweep"]
            side.end()
        micro_batch = fastest(tried, "micro_batch", seconds="seconds_learning")
        written = fastest(tried, "written", seconds="seconds_writing")
        self.note(f"the peer at its best: learns from {micro_batch} at a time, writes {written} at a time")
        self.work["peer"] = {"micro_batch": micro_batch, "written": written}
        return {"peer_micro_batch": micro_batch, "peer_written": written, "peer_sweep": tried}

    def gradients(self) -> dict[str, Any]:
        """How far the gradients of both trainers are apart after one pass over the same responses."""
        with self._side("gradient_ours") as ours, self._side("gradient_peer") as peer:
            for side in (ours, peer):
                side.loaded()
            ours.step()  # leaves its gradient where the peer's process reads it
            ours.end()
            found = peer.step()
            peer.end()
        self.note(f"gradients differ by {found['max_grad_rel_err']:.1e} at most ({found['where']})")
        return {"max_grad_rel_err": found["max_grad_rel_err"], "parameters_compared": found["parameters"]}

    def take_turns(self, *names: str, updates: int = 0) -> Turned:
        """Let these sides update in turn; all stay loaded. Every update is returned, warm-ups too."""
        with ExitStack() as stack:
            sides = [stack.enter_context(self._side(name, updates=updates)) for name in names]
            said = {side.name: side.loaded() for side in sides}
            steps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for turn in range(updates or self.work["updates"]):
                for side in sides:
                    steps[side.name].append(side.step())
                row = ", ".join(f"{name} {own[-1]['seconds']:.2f} s" for name, own in steps.items())
                self.note(f"{'warm-up' if turn < self.warmups else 'update'} {turn + 1}: {row}")
            return Turned(said, steps, peaks={side.name: side.end() for side in sides})

    def _side(self, name: str, *, updates: int = 0) -> Side:
        """A child process with a folder of its own."""
        folder = Path(self.work["common"], name)
        folder.mkdir()
        work = {**self.work, "folder": str(folder), "updates": updates or self.work["updates"]}
        return Side(MODULE, name, work, interpreter=self.peer_python if name in PEERS else sys.executable)

    def note(self, text: str) -> None:
        """A line of progress."""
        print(f"{self.case}: {text}", file=sys.stderr, flush=True)


def measured(case: PpoCase, options: argparse.Namespace) -> dict[str, Any]:
    """One case, as it stands in the JSON."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        comparison = Comparison(case, options, folder=folder)
        comparison.prepare()
        tuned, compared = comparison.tune(), comparison.gradients()
        turned = comparison.take_turns("ours", "peer")
        lean = turned.peaks["peer"]
        if tuned["peer_micro_batch"] > 1:
            lean = comparison.take_turns("peer_lean", updates=1).peaks["peer_lean"]
        written = max(step["response_tokens"] for step in turned.steps["ours"])  # the step that our peak is of
        comparison.work["written_per_prompt"] = round(written / case.prompts)
        plain, alike = (comparison.take_turns(name) for name in ("sft", "sft_alike"))
    every = {**turned.steps, **plain.steps, **alike.steps}
    warm = {name: steps[comparison.warmups :] for name, steps in every.items()}
    seconds = {name: statistics.median(step["seconds"] for step in steps) for name, steps in warm.items()}
    ours, peer = turned.peaks["ours"], turned.peaks["peer"]
    return {
        **{"B": case.prompts, "K": case.samples, "P": case.p, "R": case.r},
        **{f"seconds_{name}": round(own, 4) for name, own in seconds.items()},
        "ratio": round(seconds["peer"] / seconds["ours"], 3),
        **{f"written_{name}": statistics.median(s["response_tokens"] for s in warm[name]) for name in ("ours", "peer")},
        **_phases(warm["ours"], "ours"),
        **_phases(warm["peer"], "peer"),
        "peak_rss_ours": ours,
        "peak_rss_peer": peer,
        "peak_rss_peer_lean": lean,
        "peak_rss_sft": plain.peaks["sft"],
        "peak_rss_sft_alike": alike.peaks["sft_alike"],
        "memory_ratio": round(ours / peer, 3),
        "memory_ratio_lean": round(ours / lean, 3),
        "peak_over_sft": round(ours / plain.peaks["sft"], 3),
        "peak_over_sft_alike": round(ours / alike.peaks["sft_alike"], 3),
        **{k: v for name in ("ours", "peer") for k, v in _told(turned.steps[name], name).items()},
        "optimizer_steps_peer": [step["optimizer_steps"] for step in turned.steps["peer"]],
        **compared,
        "layout": turned.said["ours"]["layout"],
        "peer_critic": options.peer_critic,
        "prompts_file": Path(options.prompts).name,
        "peer_versions": turned.said["peer"]["versions"],
        **tuned,
        "warmups": options.warmups,
        "updates": options.updates,
    }


def fastest(tried: Sequence[Mapping[str, Any]], size: str, *, seconds: str) -> int:
    """The smallest of the sizes that are as fast as the fastest, but for noise: memory is compared, too."""
    least = min(row[seconds] for row in tried)
    return min(int(row[size]) for row in tried if row[seconds] <= NOISE * least)


def _phases(steps: Sequence[Mapping[str, Any]], side: str) -> dict[str, float]:
    """Medians of an update's parts."""
    names = ("seconds_writing", "seconds_scoring", "seconds_learning")
    return {f"{name}_{side}": round(statistics.median(step[name] for step in steps), 4) for name in names}


def _told(steps: Sequence[Mapping[str, Any]], side: str) -> dict[str, Any]:
    """Rewards and lengths of a side, update by update. `start`: by the untouched policy."""
    rewards = [round(step["reward"], 5) for step in steps]
    return {
        f"reward_start_{side}": rewards[0],
        f"reward_end_{side}": rewards[-1],
        f"rewards_{side}": rewards,
        f"kl_{side}": [round(step["kl"], 5) for step in steps],
        f"response_tokens_{side}": [step["response_tokens"] for step in steps],
    }


def table(cases: Sequence[Mapping[str, Any]]) -> str:
    """The cases for people."""
    lines = [f"{'B':>3}{'K':>3}{'P':>5}{'R':>5}" + "".join(f"{title:>10}" for title in COLUMNS.values())]
    for case in cases:
        cells = [_cell(name, case[name]) for name in COLUMNS]
        sizes = f"{case['B']:>3}{case['K']:>3}{case['P']:>5}{case['R']:>5}"
        lines.append(sizes + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    if name.startswith("written"):
        return f"{value:.0f}"
    if name.startswith("peak_rss"):
        return f"{value / 1e6:.0f}"
    return f"{value:.1e}" if name == "max_grad_rel_err" else f"{value:.2f}"


def read_case(text: str) -> PpoCase:
    """`B,K,P,R` as a case. Raises ArgumentTypeError with a sentence."""
    numbers = [int(n) for n in text.split(",")] if re.fullmatch(r"\d{1,6}(,\d{1,6}){3}", text) else []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no case. Write B,K,P,R, each 1 or more, as in 16,1,128,64.")
    case = PpoCase(*numbers)
    if case.responses < 2:
        raise argparse.ArgumentTypeError(f"'{text}': advantages are compared within an update. Ask for 2 responses.")
    return case


def read_sizes(text: str) -> tuple[int, int]:
    """`LEARNED,WRITTEN`: how many responses the peer takes at a time. Raises ArgumentTypeError with a sentence."""
    if not re.fullmatch(r"[1-9]\d{0,5},[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no pair of sizes. Write LEARNED,WRITTEN, as in 4,16.")
    learned, written = map(int, text.split(","))
    return learned, written


def check_peer(python: str) -> None:
    """Raises BadInput where this interpreter has no TRL with PPOTrainer."""
    remedy = (
        "Make an environment for it: `python3 -m venv ../ppo-peer`, then `../ppo-peer/bin/pip install -r "
        "requirements-bench-ppo.txt`, and give --peer-python ../ppo-peer/bin/python."
    )
    if not python:
        raise BadInput(f"--peer-python is missing: TRL {TRL}, the last with PPOTrainer, is the peer. {remedy}")
    code = "from importlib.metadata import version; import trl.experimental.ppo, datasets; print(version('trl'))"
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise BadInput(f"--peer-python {python}: cannot be run ({error.strerror}). {remedy}") from None
    if asked.returncode:
        told = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1][:150]
        raise BadInput(f"--peer-python {python}: has no trl.experimental.ppo ({told}). {remedy}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 1 or more.")
    return int(text)


def _options(flags: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer-python", default=os.environ.get(PEER_PYTHON, ""), help=f"its interpreter; {PEER_PYTHON}"
    )
    parser.add_argument("--peer-critic", choices=("full", "lora"), default="full", help="what it trains of the critic")
    parser.add_argument("--peer-sizes", type=read_sizes, metavar="LEARNED,WRITTEN", help="instead of its fastest")
    parser.add_argument(
        "--cases", type=read_case, nargs="+", metavar="B,K,P,R", help="prompts, responses to each, tokens"
    )
    parser.add_argument(
        "--prompts", default="", metavar="FILE", help="real ones, as `python -m train generate` reads them"
    )
    parser.add_argument("--updates", type=_positive, help="updates timed (3)")
    parser.add_argument("--warmups", type=_positive, default=1, help="updates before them that are not timed (1)")
    parser.add_argument("--learning-rate", type=float, default=3e-5, help="of both sides (3e-5)")
    parser.add_argument("--quick", action="store_true", help="tiny cases, one update each: shows that it works")
    parser.add_argument("--model", default="smollm2-135m", help="a model folder, a hub id, or smollm2-135m")
    parser.add_argument("--workspace", type=Path, default=Path("var"), help="where smollm2-135m is kept")
    parser.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="of every side")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--worker", choices={**OURS, **PEERS}, help=argparse.SUPPRESS)
    options = parser.parse_args(flags)
    options.cases = options.cases or (QUICK if options.quick else CASES)
    options.updates = options.updates or (1 if options.quick else 3)
    for case in options.cases if options.peer_sizes else ():
        if any(case.responses % size for size in options.peer_sizes):
            parser.error(f"--peer-sizes: the {case.responses} responses of {case} cannot be dealt out evenly by them.")
    return options


def main(flags: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code is 2 where the user has something to mend."""
    options = _options(flags)
    try:
        if options.worker:
            os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
            module = importlib.import_module(f"benchmarks.{({**OURS, **PEERS})[options.worker]}")
            getattr(module, options.worker)(Turns())
            return 0
        check_peer(options.peer_python)
        cases = [measured(case, options) for case in options.cases]
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
