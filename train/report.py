"""What a finished run leaves behind: the adapter, the model card, the curves."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.files import atomic_text, whole_folder, write_json
from train.models import make_pad_known
from train.normalization import Normalization, write_normalization
from train.run import read_config, read_evaluation, read_metrics


def save_adapter(model: Any, tokenizer: Any, folder: Path, normalized: Normalization | None = None) -> None:
    """Adapter, head, tokenizer and what was normalized, under `folder` all at once."""
    with whole_folder(folder) as unfinished:
        model.save_pretrained(str(unfinished))
        sort_modules(unfinished / "adapter_config.json")
        tokenizer.save_pretrained(str(unfinished))
        write_normalization(normalized, unfinished)
        (unfinished / "README.md").unlink(missing_ok=True)  # peft's template; the run's own card says more
        shutil.rmtree(folder, ignore_errors=True)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A whole model with its tokenizer, under `folder` all at once."""
    with whole_folder(folder) as unfinished:
        make_pad_known(model, tokenizer)
        model.save_pretrained(str(unfinished))
        tokenizer.save_pretrained(str(unfinished))
        shutil.rmtree(folder, ignore_errors=True)


def sort_modules(path: Path) -> None:
    """peft writes the adapted layers' names in the order of a set, another one in every process."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        write_json(path, {**config, "target_modules": sorted(config["target_modules"])})


def pad_is_new(model: Any, tokenizer: Any) -> bool:
    """Whether the base's embedding has no row for the pad token."""
    return int(tokenizer.pad_token_id) >= int(model.get_input_embeddings().num_embeddings)


def in_words(found: Mapping[str, Any] | None, *, prompts: str = "held-out") -> str:
    """One line for the log. `prompts`: which ones were measured on."""
    if not found or found["accuracy"] is None:
        return f"no {prompts} comparison"
    longer = found["longer_wins"]["accuracy"]
    parts = [
        f"{prompts} pair accuracy {found['accuracy']:.3f} on {found['pairs']} pairs of {found['prompts']} prompts "
        f"(the longer wins: {longer:.3f})"
    ]
    if found.get("kendall_tau_b") is not None:
        parts.append(f"Kendall tau {found['kendall_tau_b']:.3f}")
    ece = found.get("calibration", {}).get("ece")
    if ece is not None:
        parts.append(f"calibration error {ece:.3f}")
    return ", ".join([*parts, f"loss {found['loss']:.4f}"])


def draw_curves(path: Path) -> None:
    """`curves.png`: loss and accuracy over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(path)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for key, style in ((name, "-"), (f"eval_{name}", "o")):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=key, markersize=4, linewidth=1)
                axes.legend()
        axes.set_xlabel("step")
        axes.set_title(name)
    figure.savefig(path / "curves.png", dpi=110)


def write_card(path: Path, *, needs_resize: bool) -> None:
    """`README.md`: what it was made of, how good it is, how to load it. Shows `eval.png` where it is there already."""
    config = read_config(path)
    evaluation = read_evaluation(path) or {}
    drawn = (path / "eval.png").exists()
    with atomic_text(path / "README.md") as file:
        file.write(_card(config, evaluation, needs_resize=needs_resize, drawn=drawn))


def _card(config: Mapping[str, Any], evaluation: Mapping[str, Any], *, needs_resize: bool, drawn: bool) -> str:
    found = evaluation.get("eval") or {}
    tables = [
        _metrics(found),
        _by(found.get("by_margin", []), "margin"),
        _by(found.get("by_annotator", []), "annotator"),
    ]
    if drawn:
        tables.append("![Calibration, accuracy by margin, reward by length and by rank](eval.png)")
    return _CARD.format(
        model=config["model"],
        base=config["base"],
        data=config["data"],
        sha256=config["manifest_sha256"],
        loss=_LOSSES[config.get("loss", "bradley_terry")],
        summary=in_words(found),
        evaluation="\n\n".join(filter(None, tables)),
        groups=json.dumps(evaluation.get("groups", {}), indent=2),
        config=json.dumps(config, indent=2, ensure_ascii=False),
        resize="base.resize_token_embeddings(len(tokenizer))  # room for the pad token\n" if needs_resize else "",
        four_bit=FOUR_BIT if config.get("load_in_4bit") else "",
    )


def _metrics(found: Mapping[str, Any]) -> str:
    """One row a number, those of a nested measure under both names; lists are left to tables of their own."""
    rows = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}: {k}", v) for k, v in value.items() if not isinstance(v, list)]
        elif not isinstance(value, list):
            rows.append((name, value))
    rows = rows or [("none", "no held-out prompts")]
    return table(("", "held-out prompts"), [(name.replace("_", " "), cell(value)) for name, value in rows])


def _by(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Accuracy by `name`, empty without rows."""
    cells = [(literal(str(row[name])), cell(row["accuracy"]), cell(row["pairs"])) for row in rows]
    return table((name, "accuracy", "pairs"), cells) if cells else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A number in a table."""
    if value is None:
        return "nothing to count"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def literal(text: str) -> str:
    """A name in Markdown as it was written: nothing in it is markup, HTML or the end of a cell."""
    one_line = " ".join(text.split())
    return html.escape(re.sub(r"([\\`*_\[\]|~$])", r"\\\1", one_line), quote=False)


_LOSSES = {"bradley_terry": "pairwise Bradley-Terry loss", "plackett_luce": "Plackett-Luce loss of whole rankings"}

FOUR_BIT = """
This run was computed on the base in 4 bits (NF4); on the base in full precision, as loaded above, its results differ
slightly.
"""

_CARD = """\
# Reward model on {model}

LoRA adapter and a one-neuron score head, trained on rankings with the {loss}: the reward is
read at the EOS token that ends the response. Result: {summary}.

- base: `{base}`
- data: `{data}`, manifest sha256 `{sha256}`

## How to load

With plain `transformers` and `peft`, the same scores as `python -m train score`:

```python
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("adapter", padding_side="right")
base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels=1, dtype=torch.float32)
base.config.pad_token_id = tokenizer.pad_token_id  # the library finds a row's end by it; it is not the EOS token
{resize}model = PeftModel.from_pretrained(base, "adapter").eval()
```

Encode prompt and response as one conversation (chat template), let it end with the EOS token exactly once (drop what
the template writes after it), pad on the right.
{four_bit}
For a whole model that needs no `peft`, merge the adapter into its base:
`python -m train merge --model RUN --output DIR`.

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
