"""Evaluate a language model by its win rate against another, on prompts neither was trained on.

Both write, one after the other and never in memory together; then the judge scores everything.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data.dataset_folder import file_sha256
from data.errors import BadInput, UserError
from data.exporting import read_dataset
from data.json_lines import encode_json
from data.records import PromptRecord, Response, write_record
from data.splits import split_of
from train.chat import encode_prompt
from train.command_configs import EvaluateConfig
from train.files import atomic_text, check_out_file
from train.generate import longest_prompt, read_prompts, written_row
from train.judge import Judge, Judged, judge_of, named
from train.models import MERGE_NOTE, ModelSource, device, load_causal, load_tokenizer, resolve
from train.run import read_config
from train.sampling import Sample, sample_all
from train.win_rate import Side, win_rate

log = logging.getLogger(__name__)

Samples = Sequence[Sequence[Sample]]


@dataclass(frozen=True)
class Prompts:
    """What both models answer. `left_out` counts the prompts of the split that they do not, by reason."""

    records: tuple[PromptRecord, ...]
    left_out: Mapping[str, int]
    sha256: str


@dataclass(frozen=True)
class Writer:
    """A model, not loaded yet, with all prompts as its token ids."""

    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[list[int]]


def main(config: EvaluateConfig, source: ModelSource) -> str:
    """The win rate of `source`, a language model, as one line of words or a JSON object."""
    _check_flags(config)
    prompts = _prompts(config)
    other = _other(config, source)
    judge = judge_of(config, trial=_trial(prompts.records[0]))
    prompts, writers = _with_room(config, prompts, {"--model": source, "--against": other})
    ours = _write(config, writers[0])
    if _same(source, other):
        theirs = ours  # it would only write more of the same
    else:
        with named("--against"):
            theirs = _write(config, writers[1], first=config.samples)
    records = [
        written_row(prompt, [(source.name, a), (other.name, b)], config=config)
        for prompt, a, b in zip(prompts.records, ours, theirs, strict=True)
    ]
    judged = _judge(config, judge, records)
    result = {
        "model": source.name,
        "against": other.name,
        "judge": config.judge,
        **_measures(config, ours, theirs, judged=judged),
        "left_out": prompts.left_out,
        "judge_cut": judged.cut,
        "sampling": {name: getattr(config, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")},
        "split": config.split,
        "manifest_sha256": prompts.sha256,
    }
    return json.dumps(result) if config.json else in_words(result)


def in_words(result: Mapping[str, Any]) -> str:
    """One line: who won how often, by how much, and at what length."""
    a, b, samples = result["responses"]["model"], result["responses"]["against"], result["samples"]
    best = f" (its best of {samples}: {b['best_of_n']:.3f})" if samples > 1 else ""
    far = "" if 0.1 <= result["longer"] <= 0.9 else f" (a guess: longer in {result['longer']:.0%} of the pairs)"
    return ", ".join(
        [
            f"win rate {_estimate(result, 'win_rate')} against {result['against']}",
            f"at equal length {_estimate(result, 'win_rate_length_controlled')}{far}",
            f"judged by {result['judge']} on {result['prompts']} prompts with {samples} samples each",
            f"score {a['score']:.3f} against {b['score']:.3f}{best}",
            f"difference {_estimate(result, 'score_difference')}",
            f"tokens {a['tokens']:.1f} against {b['tokens']:.1f}",
            f"finished {a['finished']:.1%} against {b['finished']:.1%}",
        ]
    )


def _estimate(result: Mapping[str, Any], name: str) -> str:
    if result[name] is None:
        return "unknown"
    interval = result[f"{name}_interval"]
    return f"{result[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _check_flags(config: EvaluateConfig) -> None:
    """Refuse what belongs to reward models, and a missing judge. Raises BadInput."""
    if config.plot is not None:
        raise BadInput(f"--plot {config.plot}: draws a reward model, and {config.model} is a language model. Leave it.")
    if not config.judge:
        raise BadInput(
            f"--model {config.model}: a language model is measured by what it writes, and somebody must judge that. "
            "Give --judge, a reward model or package.module:function."
        )
    if config.out is not None:
        check_out_file(config.out, flag="--out")


def _prompts(config: EvaluateConfig) -> Prompts:
    """The prompts of the split, each once. Raises BadInput where there is none."""
    if config.data.is_dir():
        dataset = read_dataset(config.data, eval_fraction=config.eval_fraction)
        records, sha256 = list(dataset.records), dataset.manifest_sha256
    else:
        records = [replace(r, split=split_of(r, config.eval_fraction)) for r in read_prompts(config.data)]
        sha256 = file_sha256(config.data)
    chosen = [r for r in records if config.split in ("all", r.split)]
    if not chosen:
        raise BadInput(f"{config.data}: no prompt in split '{config.split}' ({len(records)} prompts). Try --split all.")
    once = list({r.prompt_hash: r for r in reversed(chosen)}.values())[::-1]
    kept = once[: config.prompts_limit or None]
    left_out = {"repeated": len(chosen) - len(once), "over_the_limit": len(once) - len(kept)}
    return Prompts(tuple(kept), left_out, sha256)


def _other(config: EvaluateConfig, source: ModelSource) -> ModelSource:
    """The model to win against: --against, else what `source` was before it was trained. Raises UserError."""
    with named("--against"):
        found = resolve(config.against, workspace=config.workspace) if config.against else _start(config, source)
        if found.gives_rewards:
            raise BadInput(f"--against {found.name}: a reward model writes nothing. Give a language model.")
    return found


def _start(config: EvaluateConfig, source: ModelSource) -> ModelSource:
    """A run's or an adapter's base, loaded as that adapter loads it; the base of a merged model; of a run that trained
    all weights, the model it began with."""
    if source.adapter is not None:
        return ModelSource(source.base, source.base, load_in_4bit=source.load_in_4bit)
    folder = Path(source.base)
    run = read_config(folder.parent) if (folder.parent / "status.json").exists() else {}
    note = folder / MERGE_NOTE
    began = json.loads(note.read_text(encoding="utf-8"))["base"] if note.exists() else run.get("model")
    if not began:
        raise BadInput(
            f"--model {config.model}: a base has no start of its own to win against. Name another with --against."
        )
    return resolve(str(began), workspace=config.workspace)


def _same(source: ModelSource, other: ModelSource) -> bool:
    return replace(source, name="", stage="", max_length=0) == replace(other, name="", stage="", max_length=0)


def _trial(prompt: PromptRecord) -> PromptRecord:
    """What a judge is tried on: the prompt's own words as two responses."""
    return replace(prompt, responses=(Response(prompt.prompt[-1].content),) * 2)


def _with_room(
    config: EvaluateConfig, prompts: Prompts, sources: Mapping[str, ModelSource]
) -> tuple[Prompts, list[Writer]]:
    """The prompts that leave both models room for a response, for each model too. Raises BadInput."""
    writers, fits = [], np.ones(len(prompts.records), dtype=bool)
    for flag, source in sources.items():
        with named(flag):
            tokenizer = load_tokenizer(source)
            own = [encode_prompt(tokenizer, r.prompt) for r in prompts.records]
            longest = longest_prompt(source, room=config.max_new_tokens)
        fits &= [longest is None or len(ids) <= longest for ids in own]
        writers.append(Writer(source, tokenizer, own))
    left_out = {**prompts.left_out, "too_long": int((~fits).sum())}
    if not fits.any():
        raise BadInput(
            f"{config.data}: no prompt leaves room for {config.max_new_tokens} new tokens. Lower --max_new_tokens."
        )
    log.info("prompts: %d, left out: %s", fits.sum(), ", ".join(f"{k} {n}" for k, n in left_out.items() if n) or "none")
    kept = tuple(r for r, fit in zip(prompts.records, fits, strict=True) if fit)
    return replace(prompts, records=kept, left_out=left_out), [
        replace(w, prompts=[ids for ids, fit in zip(w.prompts, fits, strict=True) if fit]) for w in writers
    ]


def _write(config: EvaluateConfig, by: Writer, *, first: int = 0) -> Samples:
    """The model's responses. Numbered from `first`, so that the two models' chances are independent: drawn alike, their
    responses would go together, and a small lead would win most pairs."""
    log.info("%s writes %d responses to each of %d prompts", by.source.name, config.samples, len(by.prompts))
    model = load_causal(by.source, dtype=torch.bfloat16 if config.bf16 else torch.float32).to(device())
    found = sample_all(model, by.tokenizer, by.prompts, config=config, first=first)
    del model
    gc.collect()  # models hold references in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _judge(config: EvaluateConfig, judge: Judge, records: Sequence[PromptRecord]) -> Judged:
    """Score everything, and keep it in --out; where the judge fails, keep the responses at least."""
    log.info("%s judges %d responses", config.judge, sum(len(r.responses) for r in records))
    try:
        judged = judge.score(records)
    except UserError:
        if config.out is not None:
            _keep(config.out, records)
            log.info("the responses are kept in %s, without scores", config.out)
        raise
    if config.out is not None:
        more = [{"judge": config.judge, "scores": own} for own in judged.scores]
        _keep(config.out, [replace(r, metadata={**r.metadata, **m}) for r, m in zip(records, more, strict=True)])
    return judged


def _keep(out: Path, records: Sequence[PromptRecord]) -> None:
    with atomic_text(out) as file:
        file.writelines(encode_json(write_record(r)) + "\n" for r in records)


def _measures(config: EvaluateConfig, ours: Samples, theirs: Samples, *, judged: Judged) -> dict[str, Any]:
    """The comparison and both models' figures, ready for JSON."""
    scores = np.array(judged.scores)
    a = _side(scores[:, : config.samples], ours)
    b = _side(scores[:, config.samples :], theirs)
    found = win_rate(a, b, seed=config.seed)
    spread = float(b.scores.std())
    return {
        "win_rate": found.win_rate.value,
        "win_rate_interval": found.win_rate.interval,
        "win_rate_length_controlled": found.length_controlled and found.length_controlled.value,
        "win_rate_length_controlled_interval": found.length_controlled and found.length_controlled.interval,
        "score_difference": found.difference.value,
        "score_difference_interval": found.difference.interval,
        "score_difference_in_deviations": found.difference.value / spread if spread else None,
        "prompts": len(scores),
        "samples": config.samples,
        "pairs": found.pairs,
        "ties": found.ties,
        "longer": found.longer,
        "responses": {
            "model": _figures(a, ours),
            "against": {**_figures(b, theirs), "best_of_n": found.best_of_n},
        },
    }


def _side(scores: Any, samples: Samples) -> Side:
    return Side(scores, np.array([[len(s.text) for s in own] for own in samples], dtype=float))


def _figures(side: Side, samples: Samples) -> dict[str, float]:
    """Means over all of a model's responses."""
    flat = [s for own in samples for s in own]
    return {
        "score": float(side.scores.mean()),
        "score_deviation": float(side.scores.std()),
        "tokens": fmean(s.tokens for s in flat),
        "chars": float(side.chars.mean()),
        "finished": fmean(s.finished for s in flat),
    }
