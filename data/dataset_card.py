"""The README.md of a dataset folder: a dataset card, with the header that dataset hubs and `datasets` read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COUNTS = {
    "prompts": "prompts",
    "responses": "responses",
    "rankings": "rankings",
    "annotators": "annotators",
    "rankings_with_ties": "rankings with ties",
    "rankings_partial": "rankings that leave a response unranked",
    "rankings_with_bar": "rankings with an acceptable bar",
    "prompts_without_ranking": "prompts without a ranking",
    "skipped": "skips",
    "flagged": "flags",
}


def dataset_card(manifest: Mapping[str, Any], *, languages: Sequence[str], guidelines: str) -> str:
    """The card of the export that `manifest` describes (its file hashes are not needed)."""
    parts = [_header(manifest, languages), _introduction(manifest), _tables(manifest), _use(manifest)]
    if guidelines.strip():
        quoted = "\n".join(f"> {line}".rstrip() for line in guidelines.strip().splitlines())
        parts.append(f"## Guidelines the annotators had\n\n{quoted}\n")
    return "\n".join(parts)


def _header(manifest: Mapping[str, Any], languages: Sequence[str]) -> str:
    pairs = manifest["pairs"]["exported"]
    lines = ["---", f"pretty_name: {json.dumps(manifest['project'], ensure_ascii=False)}", "license: unknown"]
    if languages:
        lines += ["language:", *(f"- {json.dumps(language)}" for language in languages)]
    lines += ["task_categories:", "- text-generation"]
    lines += ["size_categories:", f"- {next((name for limit, name in _SIZES if pairs < limit), 'n>1M')}"]
    lines += ["tags:", *(f"- {tag}" for tag in ("human-feedback", "preference", "rlhf", "dpo")), *_configs(manifest)]
    return "\n".join([*lines, "---", ""])


def _configs(manifest: Mapping[str, Any]) -> list[str]:
    """One view per format, then the rankings; a file without rows is no split, `datasets` cannot read it."""
    lines = []
    for name in manifest["formats"]:
        paths = {split: f"{name}/{split}.jsonl" for split in manifest["splits"]}
        full = {split: path for split, path in paths.items() if manifest["files"][path]["rows"]}
        if full:
            lines += [f"- config_name: {name}", "  data_files:"]
            lines += [line for split, path in full.items() for line in (f"  - split: {split}", f"    path: {path}")]
    if manifest["counts"]["prompts"]:
        lines += ["- config_name: rankings", "  data_files: rankings.jsonl"]
    return ["configs:", *lines] if lines else []


def _introduction(manifest: Mapping[str, Any]) -> str:
    project = manifest["project"].replace("\n", " ")
    return (
        f"# {project}\n\n"
        "Answers to prompts, ranked by people, and the preference pairs that follow from the rankings. Made with "
        "Rankwise.\n\n"
        "- `rankings.jsonl`: everything, one prompt a line: messages, responses A1 to AK, every annotator's ranking\n"
        "  (`A2>A1=A3|A4`: `>` better than, `=` tied, after `|` unacceptable, absent = not ranked) with the order\n"
        "  shown, seconds and comment, and the prompt's split.\n"
        + "".join(
            f"- `{name}/{split}.jsonl`: the pairs of the {split} split.\n"
            for name in manifest["formats"]
            for split in manifest["splits"]
        )
        + "- `manifest.json`: counts, what was left out and why, and the sha256 of every file.\n\n"
        "The split is by hash of the prompt, so no prompt is on both sides. `weight` is 1 / (pairs of the ranking): a\n"
        "ranking counts once, however many responses it has. `margin` is the distance in ranks.\n"
    )


def _tables(manifest: Mapping[str, Any]) -> str:
    counts, pairs = manifest["counts"], manifest["pairs"]
    per_prompt = ", ".join(f"{prompts:,} with {k}" for k, prompts in manifest["responses_per_prompt"].items())
    rows = [f"| {label} | {counts[key]:,} |" for key, label in _COUNTS.items()]
    rows += [f"| prompts by number of responses | {per_prompt or 'none'} |", f"| pairs, all | {pairs['total']:,} |"]
    rows += [f"| pairs, exported | {pairs['exported']:,} |"]
    rows += [f"| pairs left out: {reason.replace('_', ' ')} | {n:,} |" for reason, n in pairs["left_out"].items()]
    splits = [
        f"| {name} | {s['prompts']:,} | {s['rankings']:,} | {s['pairs']:,} |" for name, s in manifest["splits"].items()
    ]
    return "\n".join(
        [
            *("## Counts", "", "| | |", "|---|---|", *rows, ""),
            *("| split | prompts | rankings | pairs |", "|---|---|---|---|", *splits, ""),
        ]
    )


def _use(manifest: Mapping[str, Any]) -> str:
    if "trl" not in manifest["formats"]:
        return ""
    return (
        "## Use\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        'pairs = load_dataset("FOLDER", "trl")  # this folder, or the hub id it was uploaded to\n'
        'rankings = load_dataset("FOLDER", "rankings")\n'
        "```\n\n"
        "With TRL (`prompt`, `chosen` and `rejected` are message lists):\n\n"
        "```python\n"
        "from trl import RewardConfig, RewardTrainer\n\n"
        'trainer = RewardTrainer(model="MODEL", args=RewardConfig(output_dir="RUN"), train_dataset=pairs["train"])\n'
        "trainer.train()\n"
        "```\n\n"
        "With Rankwise:\n\n"
        "```\n"
        "python -m train rm --model smollm2-135m --data FOLDER --output RUN\n"
        "```\n"
    )
