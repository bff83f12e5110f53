"""The whole loop on a known judge: a model writes, noisy annotators rank, a reward model learns, and PPO by that.

The gold is VADER's score. Annotators see it with noise. Policies are measured by the gold of what they write to
openings that nothing was trained on, and by their KL divergence from the start.

`python -m tests.train.closed_loop STORIES260K FOLDER SEED` measures one seed into FOLDER/SEED.json;
`python -m tests.train.closed_loop --plot PNG FOLDER/0.json …` draws and prints what was measured.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from data.records import Message
from tests.train.gold import Judged, gold_of, openings, texts_of, write, write_rankings, writer
from train.__main__ import main
from train.chat import encode_prompt
from train.health import Health
from train.layouts import PaddedRows
from train.models import load_adapter, load_tokenizer, resolve
from train.policies import load_policy_base
from train.run import read_metrics

PROMPTS, HELD_OUT = 1500, 200
NEW_TOKENS = 40
NOISE = 0.2
"""Standard deviation of what an annotator sees beside the gold, half of the gold's own."""
BUDGET = 12.0
"""Nats a response that a policy may be from the start."""
RM_RECIPE = {"learning_rate": "1e-3", "per_device_train_batch_size": "8"}
ONLINE = {
    "gold": "tests.train.closed_loop:gold",
    "learning_rate": "1e-3",
    "max_steps": "20",
    "per_device_train_batch_size": "16",
    "samples": "4",
    "max_new_tokens": str(NEW_TOKENS),
    "kl_coef": "0.2",
    "rollout_batch_size": "64",
    "tokens_per_forward": "8192",
    "kl_budget": str(BUDGET),
}
"""20 steps of 64 responses by the reward model."""
METHODS: dict[str, tuple[str, dict[str, str]]] = {
    "PPO": ("ppo", ONLINE),
    "PPO, kl_coef 0.3": ("ppo", {**ONLINE, "kl_coef": "0.3"}),
    "PPO, kl_coef 0.1": ("ppo", {**ONLINE, "kl_coef": "0.1"}),
    "RLOO, kl_coef 0.1": ("ppo", {**ONLINE, "kl_coef": "0.1", "advantage": "rloo"}),
    "GRPO, kl_coef 0.1": ("ppo", {**ONLINE, "kl_coef": "0.1", "advantage": "grpo"}),
    "PPO, kl_coef 0": ("ppo", {**ONLINE, "kl_coef": "0", "kl_budget": "0"}),
    "DPO": ("dpo", {"beta": "0.5", "learning_rate": "1e-3", "per_device_train_batch_size": "16"}),
}
"""Name, stage and flags. DPO learns from the same rankings, without the reward model."""


def gold(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """For `--gold tests.train.closed_loop:gold`."""
    return list(gold_of(responses))


@dataclass(frozen=True)
class Measured:
    """What a policy writes to held-out openings. `gold`, `spread`: mean and deviation; `kl`: nats a response (k1)."""

    gold: float
    spread: float
    best_of_4: float
    kl: float
    tokens: float


@dataclass(frozen=True)
class Loop:
    """One seed's loop in `folder`, on the writer `base`."""

    base: Path
    folder: Path
    seed: int

    @cached_property
    def openings(self) -> list[str]:
        return openings(PROMPTS + HELD_OUT, seed=self.seed)

    @cached_property
    def ranked(self) -> Path:
        """Four responses of the start to each opening, ranked by what annotators see."""
        told = write(
            self.base,
            self.openings[:PROMPTS],
            self.folder / "own.jsonl",
            samples=4,
            new_tokens=NEW_TOKENS,
            seed=self.seed,
        )
        chance = random.Random(self.seed)
        judged = []
        for prompt, row in zip(self.openings[:PROMPTS], told, strict=True):
            texts = tuple(texts_of(row))
            judged.append(Judged(prompt, texts, tuple(g + chance.gauss(0, NOISE) for g in gold_of(texts))))
        return write_rankings(self.folder / "ranked.jsonl", judged)

    @cached_property
    def reward(self) -> Path:
        """The run of `rm` on these rankings."""
        return self.train("rm", "reward", RM_RECIPE)

    def train(self, stage: str, name: str, flags: dict[str, str]) -> Path:
        run = self.folder / name
        common = {
            "model": str(self.base),
            "data": str(self.ranked),
            "output": str(run),
            "workspace": str(self.folder),
            "seed": str(self.seed),
            "save_steps": "10000",
        }
        assert main([stage, *(text for k, v in {**common, **flags}.items() for text in (f"--{k}", v))]) == 0
        return run

    def measure(self, model: Path, *, samples: int = 4) -> Measured:
        """The same chance decides what each of the compared models writes."""
        held_out = self.openings[PROMPTS:]
        out = self.folder / f"by-{model.name}.jsonl"
        rows = write(model, held_out, out, samples=samples, new_tokens=NEW_TOKENS, seed=1000 + self.seed)
        golds = [gold_of(texts_of(row)) for row in rows]
        flat = [value for own in golds for value in own]
        lengths = [n for row in rows for n in row["metadata"]["generation"]["tokens"]]
        kl = 0.0 if model == self.base else divergence(model, held_out, seed=self.seed, folder=self.folder)
        return Measured(mean(flat), stdev(flat), mean(map(max, golds)), kl, mean(lengths))


def divergence(run: Path, prompts: Sequence[str], *, seed: int, folder: Path) -> float:
    """From the start, over one response to each prompt: nats a response."""
    source = resolve(str(run), workspace=folder)
    tokenizer = load_tokenizer(source)
    policy = load_adapter(load_policy_base(source, dtype=torch.float32), source).eval()
    asked = [encode_prompt(tokenizer, [Message("user", prompt)]) for prompt in prompts]
    health = Health(tokenizer, asked, max_new_tokens=NEW_TOKENS, seed=seed)
    return health.measure(policy, PaddedRows(8192))["kl"]


def facts(run: Path) -> dict[str, Any]:
    """eval.json."""
    return dict(json.loads((run / "eval.json").read_text()))


def best_of(loop: Loop, counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """The start's responses, of which the reward model picks one: gold and the divergence that picking costs.

    The divergence is at most log n - (n - 1) / n (Stiennon et al. 2020).
    """
    held_out = loop.openings[PROMPTS:]
    out = loop.folder / "start.jsonl"
    rows = write(loop.base, held_out, out, samples=max(counts), new_tokens=NEW_TOKENS, seed=1000 + loop.seed)
    scored = loop.folder / "start-scores.jsonl"
    flags = ["--model", str(loop.reward), "--data", str(out), "--out", str(scored), "--workspace", str(loop.folder)]
    assert main(["score", *flags]) == 0
    scores = [json.loads(line)["scores"] for line in scored.read_text().splitlines()]
    golds = [gold_of(texts_of(row)) for row in rows]
    found = {}
    for n in counts:
        picked = [g[max(range(n), key=own.__getitem__)] for g, own in zip(golds, scores, strict=True)]
        found[f"best of {n}"] = {"gold": mean(picked), "kl": math.log(n) - (n - 1) / n}
    return found


def measure_seed(stories: Path, folder: Path, seed: int) -> dict[str, Any]:
    """All methods on one seed."""
    work = folder / str(seed)
    work.mkdir(parents=True)
    loop = Loop(writer(stories, work / "base"), work, seed)
    start = loop.measure(loop.base)
    found: dict[str, Any] = {"start": asdict(start), "reward": facts(loop.reward)["eval"]["accuracy"]}
    for name, (stage, flags) in METHODS.items():
        more = {"reward": str(loop.reward)} if stage == "ppo" else {}
        run = loop.train(stage, name.replace(" ", "-").replace(",", ""), {**flags, **more})
        curve = [{k: r[k] for k in ("gold", "kl", "reward")} for r in read_metrics(run) if "gold" in r and "loss" in r]
        alarm = facts(run).get("alarm") or facts(run).get("displacement") or {}
        found[name] = {**asdict(loop.measure(run)), "curve": curve, "alarm": alarm.get("step")}
    return found | best_of(loop, [2, 4, 16])


def table(seeds: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row a method, one pair of columns a seed."""
    names = [n for n in seeds[0] if n not in ("start", "reward")]
    lines = ["| | " + " | ".join("gold, gain in sd, KL" for _ in seeds) + " |", "|---" * (1 + len(seeds)) + "|"]
    lines.append(
        "| start (sd) | " + " | ".join(f"{s['start']['gold']:.3f} ({s['start']['spread']:.3f})" for s in seeds) + " |"
    )
    for name in names:
        cells = []
        for s in seeds:
            gain = (s[name]["gold"] - s["start"]["gold"]) / s["start"]["spread"]
            cells.append(f"{s[name]['gold']:.3f}, {gain:+.2f}, {s[name]['kl']:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, seeds: Sequence[dict[str, Any]]) -> None:
    """Gold against the divergence from the start: the way of each training, and where it ended."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    shades = ["#312e81", "#a5b4fc", "#6366f1", "#0e9384", "#b45309", "#b42318", "#111827"]
    colors = dict(zip(METHODS, shades, strict=True))
    for name, color in colors.items():
        for number, found in enumerate(seeds):
            own, label = found[name], name if not number else None
            curve = own["curve"]
            axes.plot([c["kl"] for c in curve], [c["gold"] for c in curve], "-", color=color, linewidth=0.8, alpha=0.35)
            axes.plot(own["kl"], own["gold"], "o", color=color, markersize=7, markeredgecolor="white", label=label)
    best = [n for n in seeds[0] if n.startswith("best of")]
    for found in seeds:
        kl, gold_found = ([found[n][key] for n in best] for key in ("kl", "gold"))
        axes.plot(kl, gold_found, "s--", color="#667085", markersize=5, linewidth=1, alpha=0.7)
    for n in best:
        axes.annotate(
            n, (seeds[0][n]["kl"], seeds[0][n]["gold"]), xytext=(4, -12), textcoords="offset points", fontsize=8
        )
    axes.axvline(BUDGET, color="#98a2b3", linewidth=1, linestyle=":", label=f"budget, {BUDGET:g} nats")
    axes.set(xlabel="KL divergence from the start, nats a response", ylabel="gold, mean", xlim=(-0.3, None))
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--plot":
        measured = [json.loads(Path(name).read_text()) for name in sys.argv[3:]]
        draw(Path(sys.argv[2]), measured)
        print(table(measured))
    else:
        stories, folder, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
        (folder / f"{seed}.json").write_text(json.dumps(measure_seed(stories, folder, seed)))
