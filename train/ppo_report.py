"""What a finished run of PPO leaves behind: actor and critic, a line, the model card, the curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from train.files import atomic_text, whole_folder
from train.policy_plot import draw_ppo
from train.policy_report import MERGING, code, counted, loading, short_name
from train.report import FOUR_BIT, cell, literal, sort_modules, table
from train.roles import Roles
from train.run import read_config, read_evaluation, read_metrics

_METHODS = {
    "gae": "PPO with generalised advantage estimation and a critic",
    "rloo": "PPO's clipped ratio with leave-one-out advantages (RLOO)",
    "grpo": "PPO's clipped ratio with group-relative advantages (GRPO)",
}
_MEASURES = {
    "reward": "reward",
    "gold": "gold",
    "kl": "KL divergence from the reference, nats a response",
    "kl_per_token": "the same, nats a token",
    "tokens": "length, tokens",
    "finished": "share that ended by themselves",
    "repetition": "share of repeated four-token runs",
}


def save_roles(roles: Roles, tokenizer: PreTrainedTokenizerBase, run: Path) -> None:
    """`adapter/`, the deliverable, and `critic/` where there is one, each all at once."""
    for role, name in (("actor", "adapter"), ("critic", "critic")):
        if role == "critic" and not roles.has_critic:
            continue
        with whole_folder(run / name) as unfinished:
            roles.save_adapter(role, unfinished)  # type: ignore[arg-type]
            sort_modules(unfinished / "adapter_config.json")
            if role == "actor":
                tokenizer.save_pretrained(str(unfinished))
            shutil.rmtree(run / name, ignore_errors=True)


def in_words(evaluation: Mapping[str, Any]) -> str:
    """One line on a run of ppo, from its eval.json."""
    found = evaluation.get("eval")
    if not found:
        return "nothing held out"
    start = found["start"]
    parts = [f"held-out reward {start['reward']:.3f} -> {found['reward']:.3f} on {counted(found['prompts'], 'prompt')}"]
    if "gold" in found:
        parts.append(f"gold {start['gold']:.3f} -> {found['gold']:.3f}")
    parts += [
        f"KL {found['kl']:.2f} nats a response",
        f"length {start['tokens']:.1f} -> {found['tokens']:.1f} tokens",
        f"finished {start['finished']:.0%} -> {found['finished']:.0%}",
    ]
    if (alarm := evaluation.get("alarm") or {}).get("step") is not None:
        parts.append(
            f"over-optimisation at step {alarm['step']:,}" + (", where it stopped" if alarm["stopped"] else "")
        )
    return ", ".join(parts)


def draw(path: Path) -> None:
    """`curves.png`."""
    evaluation = read_evaluation(path) or {}
    draw_ppo(path / "curves.png", read_metrics(path), alarm=(evaluation.get("alarm") or {}).get("step"))


def write_card(path: Path, *, needs_resize: bool) -> None:
    """`README.md`: what it was made of, what came of it, how to load it. Shows `curves.png` where it is there already.

    `needs_resize`: the base under the adapter has no embedding for the tokenizer's pad token.
    """
    config, evaluation = read_config(path), read_evaluation(path) or {}
    warnings = [evaluation.get("budget"), (evaluation.get("alarm") or {}).get("message")]
    with atomic_text(path / "README.md") as file:
        file.write(
            _CARD.format(
                name=literal(short_name(str(config.get("start", config["model"])))),
                method=_METHODS[config["advantage"]],
                summary=in_words(evaluation),
                alarm="".join(f"\n> {literal(str(text))}\n" for text in warnings if text),
                model=code(str(config.get("start", config["model"]))),
                base=code(str(config["base"])),
                reward=code(str(config["reward"])),
                kind=(evaluation.get("roles") or {}).get("reward", ""),
                data=code(str(config["data"])),
                sha256=config["manifest_sha256"],
                loading=loading(str(config["base"]), needs_resize=needs_resize),
                four_bit=FOUR_BIT if config.get("load_in_4bit") else "",
                merging=MERGING,
                evaluation=_tables(evaluation, drawn=(path / "curves.png").exists()),
                prompts=json.dumps(evaluation.get("prompts", {}), indent=2),
                config=json.dumps(config, indent=2, ensure_ascii=False),
            )
        )


def _tables(evaluation: Mapping[str, Any], *, drawn: bool) -> str:
    found = evaluation.get("eval")
    parts: list[str] = []
    if found:
        rows: list[Sequence[str]] = [
            (words, cell(found["start"][name]), cell(found[name])) for name, words in _MEASURES.items() if name in found
        ]
        parts.append(table((f"answers to {counted(found['prompts'], 'held-out prompt')}", "before", "after"), rows))
    else:
        parts.append("Nothing was held out.")
    return "\n\n".join([*parts, *(["![Curves over the steps](curves.png)"] if drawn else [])])


_CARD = """\
# Language model on {name}

LoRA adapter trained by {method} on what it wrote itself.
Result: {summary}.
{alarm}
- model, and reference: {model}
- base: {base}
- reward: {reward} ({kind})
- prompts: {data}, manifest sha256 `{sha256}`

## How to load

With plain `transformers` and `peft`, in this folder (called `RUN` below):

```python
{loading}
```

A prompt is the conversation in the tokenizer's chat template with the assistant's turn opened
(`add_generation_prompt=True`); without a template, it is `User: `, the text, an empty line and `Assistant:`.
{four_bit}{merging}
## How to write

```
python -m train generate --model RUN --prompts prompts.txt --samples 4 --out responses.jsonl
```

## Evaluation

{evaluation}

Every token of every step, with its reward, value and advantage: `python -m train inspect RUN`.

## What was read

```json
{prompts}
```

## Settings

```json
{config}
```
"""
