"""What a finished policy's run leaves behind for people: a line, the model card, the curves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.files import atomic_text
from train.policy_plot import draw_preference, draw_sft
from train.report import FOUR_BIT, cell, literal, table
from train.run import read_config, read_evaluation, read_metrics


def preference_in_words(evaluation: Mapping[str, Any]) -> str:
    """One line on a run of dpo, from its eval.json. What was not measured is left out."""
    found, written = evaluation.get("eval") or {}, evaluation.get("generations") or {}
    parts = [*_agreement(found), *_against_reference(found), *_writing(written)]
    if alarm := _displacement(evaluation):
        stopped = ", where training stopped" if alarm.get("stopped") else ""
        parts.append(f"displacement at step {alarm['step']:,}{stopped}")
    return ", ".join(parts)


def sft_in_words(evaluation: Mapping[str, Any]) -> str:
    """One line on a run of sft, from its eval.json."""
    found = evaluation.get("eval") or {}
    if found.get("perplexity") is None:
        return "nothing held out"
    before = (found.get("start") or {}).get("perplexity")
    change = "" if before is None else f"{_perplexity(before)} -> "
    return f"held-out perplexity {change}{_perplexity(found['perplexity'])} on {_material(evaluation)}"


def write_card(path: Path, *, needs_resize: bool) -> None:
    """`README.md`: what it was made of, what came of it, how to load it. Shows `curves.png` where it is there already.

    `needs_resize`: the base under the adapter has no embedding for the tokenizer's pad token.
    """
    config, evaluation = read_config(path), read_evaluation(path) or {}
    drawn = (path / "curves.png").exists()
    with atomic_text(path / "README.md") as file:
        file.write(_card(config, evaluation, needs_resize=needs_resize, drawn=drawn))


def draw(path: Path) -> None:
    """`curves.png`: what was measured over the steps, beside what was so at the start if eval.json is there already."""
    evaluation, rows = read_evaluation(path) or {}, read_metrics(path)
    found, written = evaluation.get("eval") or {}, evaluation.get("generations") or {}
    if read_config(path)["stage"] != "dpo":
        draw_sft(path / "curves.png", rows, start=found.get("start") or {})
        return
    start = {"kl": 0.0, **(written.get("start") or {})}
    if (share := _start_accuracy(found)) is not None:
        start["accuracy"] = share
    draw_preference(path / "curves.png", rows, start=start, alarm=_displacement(evaluation).get("step"))


def _agreement(found: Mapping[str, Any]) -> list[str]:
    """`found`: what was measured on the held-out prompts."""
    if not found:
        return ["nothing held out"]
    if found.get("accuracy") is None:
        return ["no held-out comparison"]
    pairs = f"{counted(found['pairs'], 'pair')} of {counted(found['prompts'], 'prompt')}"
    share = _start_accuracy(found)
    start = "" if share is None else f" (by the start's own log-probs: {share:.3f})"
    margin = [] if found.get("margin") is None else [f"reward margin {found['margin']:+.3g}"]
    return [f"held-out pair accuracy {found['accuracy']:.3f} on {pairs}{start}", *margin]


def _start_accuracy(found: Mapping[str, Any]) -> float | None:
    """How often the chosen response was the likelier one before training."""
    share = found.get("start_accuracy")
    return None if share is None else float(share)


def _against_reference(found: Mapping[str, Any]) -> list[str]:
    sides = [(side, found.get(f"{side}_log_ratio")) for side in ("chosen", "rejected")]
    told = [f"{side} {ratio:+.2f}" for side, ratio in sides if ratio is not None]
    return [f"{' and '.join(told)} nats a response against the reference"] if told else []


def _writing(written: Mapping[str, Any]) -> list[str]:
    """`written`: what was measured on the policy's own answers."""
    parts = [] if written.get("kl") is None else [f"KL {written['kl']:.2f} nats a response"]
    if written.get("tokens") is not None:
        before = (written.get("start") or {}).get("tokens")
        change = "" if before is None else f"{before:.1f} -> "
        parts.append(f"length {change}{written['tokens']:.1f} tokens")
    return parts


def _displacement(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the alarm left behind; empty where it did not go off."""
    found = evaluation.get("displacement") or {}
    return found if found.get("step") is not None else {}


def _perplexity(value: float) -> str:
    """Two digits after the point, but no row of hundreds before it: a broken model's has no bound."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def _material(evaluation: Mapping[str, Any]) -> str:
    """What perplexity was measured on. Conversations are counted as documents, too."""
    found, read = evaluation["eval"], (evaluation.get("groups") or {}).get("train") or {}
    noun = "conversation" if {"conversations", "prompts"} & read.keys() else "document"
    return f"{counted(found['tokens'], 'token')} of {counted(found['documents'], noun)}"


def counted(count: int, noun: str) -> str:
    """`1 prompt`, `2,000 prompts`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _card(config: Mapping[str, Any], evaluation: Mapping[str, Any], *, needs_resize: bool, drawn: bool) -> str:
    is_sft, whole, alarm = config["stage"] != "dpo", bool(config.get("full")), _displacement(evaluation)
    tables = _sft_tables(evaluation) if is_sft else _preference_tables(evaluation)
    return _CARD.format(
        name=literal(short_name(str(config.get("start", config["model"])))),
        what="All weights" if whole else "LoRA adapter",
        method=_taught(config, evaluation) if is_sft else f"rankings with {_LOSSES[config['loss']]}",
        summary=sft_in_words(evaluation) if is_sft else preference_in_words(evaluation),
        alarm=f"\n> {literal(str(alarm.get('message') or 'displacement'))}\n" if alarm else "",
        more="".join(f"\n- {fact}" for fact in (_began(config) if is_sft else _compared(config, evaluation))),
        model=code(str(config.get("start", config["model"]))),
        base=code(str(config["base"])),
        data=code(str(config["data"])),
        sha256=config["manifest_sha256"],
        libraries="`transformers`" if whole else "`transformers` and `peft`",
        loading=_LOADING_WHOLE if whole else loading(str(config["base"]), needs_resize=needs_resize),
        four_bit=FOUR_BIT if config.get("load_in_4bit") else "",
        merging="" if whole else MERGING,
        evaluation="\n\n".join([*tables, *(["![Curves over the steps](curves.png)"] if drawn else [])]),
        groups=json.dumps(evaluation.get("groups", {}), indent=2),
        config=json.dumps(config, indent=2, ensure_ascii=False),
    )


def short_name(model: str) -> str:
    """A hub id is a name; a path is long and says where, not what."""
    path = Path(model)
    return (path.parent if path.name == "adapter" else path).name if path.is_absolute() else model


def code(text: str) -> str:
    """A path or name as inline code: the fence is longer than any row of backticks in it."""
    one_line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", one_line)), default=0))
    return f"{fence} {one_line} {fence}" if "`" in one_line else f"`{one_line}`"


def _taught(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What supervised fine-tuning learned."""
    if config.get("from_rankings", "none") != "none":
        return "the best response of each ranked prompt"
    if "documents" in ((evaluation.get("groups") or {}).get("train") or {}):
        return "plain text, every token of it"
    return f"conversations, the assistant's {'last turn' if config.get('turns') == 'last' else 'turns'} in each"


def _began(config: Mapping[str, Any]) -> list[str]:
    """The adapter that was trained further, where there was one."""
    return [f"began with the adapter {code(config['start_adapter'])}"] if config.get("start_adapter") else []


def _knobs(config: Mapping[str, Any]) -> str:
    """The settings that are the loss's own, and those that change it from how it is published."""
    own = ("beta", *_KNOBS.get(config["loss"], ()))
    named = [f"{flag} {config[flag]:g}" for flag in own if flag in config]
    named += [f"{flag} {config[flag]:g}" for flag in ("label_smoothing", "margin") if config.get(flag)]
    if config.get("rpo_alpha"):
        named.append(f"{config['rpo_alpha']:g} times the chosen response's negative log-likelihood a token (RPO)")
    ties = config.get("ties", "half")
    if ties == "drop":
        named.append("ties dropped")
    elif ties != "half":
        named.append(f"ties as {ties.replace('_', '-').title()} has them, strength {config.get('tie_strength', 1):g}")
    if config.get("votes") == "soft":
        named.append("the annotators' vote shares as labels")
    return ", ".join(named).replace("_", " ")


def _compared(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """The loss's settings, and what the policy is held to."""
    reference = ["reference: the model as it was at the start, the base without the adapter"]
    if config["loss"] in ("simpo", "orpo"):
        reference.append("only to measure against, for this loss has none")
    if found := evaluation.get("reference"):
        asked = counted(found["computed"], "response")
        reference.append(f"log-probs of {asked} computed, {found['cached']:,} from the cache")
    return [f"loss: {_knobs(config)}", "; ".join(reference)]


def loading(base: str, *, needs_resize: bool) -> str:
    """Python that is run in the folder of a run with an adapter. JSON's strings are Python's, whatever is in them."""
    resize = "base.resize_token_embeddings(len(tokenizer))  # room for the pad token\n" if needs_resize else ""
    return _LOADING.format(base=json.dumps(base, ensure_ascii=False), resize=resize)


def _sft_tables(evaluation: Mapping[str, Any]) -> list[str]:
    found = evaluation.get("eval") or {}
    if found.get("perplexity") is None:
        return ["Nothing was held out."]
    rows = []
    for name, words, shown in (("loss", "loss, nats a token", cell), ("perplexity", "perplexity", _perplexity)):
        sides = (found.get("start") or {}, found)
        rows.append((words, *(shown(side[name]) if name in side else _UNMEASURED for side in sides)))
    return [table((_material(evaluation), "before", "after"), rows)]


def _preference_tables(evaluation: Mapping[str, Any]) -> list[str]:
    found, written = evaluation.get("eval") or {}, evaluation.get("generations") or {}
    tables = [table(("held-out prompts", ""), _rows(found)) if found else "Nothing was held out."]
    if written:
        start = {"kl": 0.0, "kl_per_token": 0.0, **(written.get("start") or {})}
        rows = [
            (words, cell(start[name]) if name in start else _UNMEASURED, cell(written[name]))
            for name, words in _WRITTEN.items()
            if name in written
        ]
        tables.append(table((f"own answers to {counted(written['prompts'], 'prompt')}", "before", "after"), rows))
    return tables


def _rows(found: Mapping[str, Any]) -> list[Sequence[str]]:
    """Every number, those of a nested measure under both names."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        flat |= {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return [(_MEASURES.get(name, name.replace("_", " ")), cell(value)) for name, value in flat.items()]


_UNMEASURED = "not measured"

_LOSSES = {
    "sigmoid": "the loss of DPO",
    "robust": "the loss of robust DPO",
    "ipo": "the loss of IPO a token",
    "hinge": "a hinge loss",
    "sigmoid_norm": "the loss of DPO a token",
    "plackett_luce": "the Plackett-Luce loss of DPO on whole rankings",
    "dpop": "the loss of DPOP",
    "simpo": "the loss of SimPO",
    "orpo": "the loss of ORPO",
    "kto": "the loss of KTO on the acceptable bar",
}

_KNOBS = {
    "dpop": ("dpop_lambda",),
    "simpo": ("simpo_gamma",),
    "kto": ("desirable_weight", "undesirable_weight"),
}

_MEASURES = {
    "accuracy": "pair accuracy",
    "start_accuracy": "pair accuracy of the start's own log-probs",
    "start_accuracy_per_token": "pair accuracy of the start's own log-probs a token",
    "margin": "reward margin",
    "chosen_log_ratio": "chosen against the reference, nats a response",
    "chosen_log_ratio_per_token": "chosen against the reference, nats a token",
    "rejected_log_ratio": "rejected against the reference, nats a response",
    "rejected_log_ratio_per_token": "rejected against the reference, nats a token",
    "chosen_logps": "log-prob of chosen, nats a response",
    "rejected_logps": "log-prob of rejected, nats a response",
}

_WRITTEN = {
    "kl": "KL divergence from the reference, nats a response",
    "kl_per_token": "the same, nats a token",
    "tokens": "length, tokens",
    "finished": "share that ended by themselves",
}

_LOADING = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("adapter")
base = AutoModelForCausalLM.from_pretrained({base}, dtype=torch.float32)
{resize}model = PeftModel.from_pretrained(base, "adapter").eval()"""

_LOADING_WHOLE = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).eval()"""

MERGING = """
For a whole model that needs no `peft`, merge the adapter into its base:
`python -m train merge --model RUN --output DIR`.
"""

_CARD = """\
# Language model on {name}

{what} trained on {method}.
Result: {summary}.
{alarm}
- model: {model}
- base: {base}
- data: {data}, manifest sha256 `{sha256}`{more}

## How to load

With plain {libraries}, in this folder (called `RUN` below):

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

## What was read

```json
{groups}
```

## Settings

```json
{config}
```
"""
