"""What a finished run leaves behind: the adapter, the model card, the curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.files import atomic_text
from train.run import read_config, read_evaluation, read_metrics


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Adapter, head and tokenizer, under `folder` all at once."""
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(str(unfinished))
    tokenizer.save_pretrained(str(unfinished))
    (unfinished / "README.md").unlink(missing_ok=True)  # peft's template; the run's own card says more
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def pad_is_new(model: Any, tokenizer: Any) -> bool:
    """Whether the base's embedding has no row for the pad token."""
    return int(tokenizer.pad_token_id) >= int(model.get_input_embeddings().num_embeddings)


def in_words(found: Mapping[str, Any] | None, *, prompts: str = "held-out") -> str:
    """One line for the log. `prompts`: which ones were measured on."""
    if not found or found["accuracy"] is None:
        return f"no {prompts} comparison"
    longer = found["longer_wins"]["accuracy"]
    return (
        f"{prompts} pair accuracy {found['accuracy']:.3f} on {found['pairs']} pairs of {found['prompts']} prompts "
        f"(the longer wins: {longer:.3f}), loss {found['loss']:.4f}"
    )


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
        axes.set_xlabel("step")
        axes.set_title(name)
        axes.legend()
    figure.savefig(path / "curves.png", dpi=110)


def write_card(path: Path, *, needs_resize: bool) -> None:
    """`README.md`: what it was made of, how good it is, how to load it."""
    config = read_config(path)
    evaluation = read_evaluation(path) or {}
    with atomic_text(path / "README.md") as file:
        file.write(_card(config, evaluation, needs_resize=needs_resize))


def _card(config: Mapping[str, Any], evaluation: Mapping[str, Any], *, needs_resize: bool) -> str:
    found = evaluation.get("eval")
    metrics = "\n".join(f"| {k} | {_cell(v)} |" for k, v in (found or {}).items() if not isinstance(v, dict))
    longer = (found or {}).get("longer_wins", {})
    baseline = "\n".join(f"| longer wins: {k} | {_cell(v)} |" for k, v in longer.items())
    return _CARD.format(
        model=config["model"],
        base=config["base"],
        data=config["data"],
        sha256=config["manifest_sha256"],
        summary=in_words(found),
        metrics="\n".join(part for part in (metrics, baseline) if part) or "| none | no held-out prompts |",
        groups=json.dumps(evaluation.get("groups", {}), indent=2),
        config=json.dumps(config, indent=2, ensure_ascii=False),
        resize="base.resize_token_embeddings(len(tokenizer))  # room for the pad token\n" if needs_resize else "",
    )


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


_CARD = """\
# Reward model on {model}

LoRA adapter and a one-neuron score head, trained on rankings with the pairwise Bradley-Terry loss: the reward is read
at the EOS token that ends the response. Result: {summary}.

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

## Evaluation

| | held-out prompts |
|---|---|
{metrics}

## What was read

```json
{groups}
```

## Settings

```json
{config}
```
"""
