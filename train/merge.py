"""`python -m train merge`: a run's adapter and its base as one whole model."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from data.errors import BadInput
from train.command_configs import MergeConfig
from train.files import whole_folder, write_json
from train.models import (
    MERGE_NOTE,
    MERGED_FROM_4BIT,
    ModelSource,
    load_tokenizer,
    load_weights,
    merge_adapter,
    resolve,
)
from train.normalization import FILE as NORMALIZATION
from train.policy_report import preference_in_words, sft_in_words
from train.report import in_words
from train.run import read_config, read_evaluation

log = logging.getLogger(__name__)


def main(config: MergeConfig) -> str:
    """Merge and save; returns the folder, or a summary."""
    _check_output(config.output)
    source = resolve(config.model, workspace=config.workspace)
    if source.adapter is None:
        raise BadInput(f"--model {config.model}: no adapter to merge; this is a whole model already. Give a run.")
    tokenizer = load_tokenizer(source)
    if source.gives_rewards:
        tokenizer.padding_side = "right"  # models with learned positions score rows padded on the left wrongly
    model = merged_model(source, tokenizer)
    note = _note(source, source.adapter)
    with whole_folder(config.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / MERGE_NOTE, note)
        if (source.adapter / NORMALIZATION).exists():
            shutil.copy(source.adapter / NORMALIZATION, folder)
        (folder / "README.md").write_text(_card(note, source), encoding="utf-8")
    log.info("merged: %s into %s, %s weights in float32", config.model, source.base, f"{model.num_parameters():,}")
    if source.load_in_4bit:
        log.info("%s: %s", config.model, MERGED_FROM_4BIT)
    return json.dumps({**note, "output": str(config.output)}) if config.json else str(config.output)


def merged_model(source: ModelSource, tokenizer: Any) -> Any:
    """A plain model of the library, in float32. Dropouts stay as the base's config has them."""
    kind: Any = AutoModelForSequenceClassification if source.gives_rewards else AutoModelForCausalLM
    labels = {"num_labels": 1} if source.gives_rewards else {}
    config = AutoConfig.from_pretrained(source.base, trust_remote_code=False, **labels)
    return merge_adapter(load_weights(kind, source, config=config, dtype=torch.float32), source, tokenizer)


def _check_output(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise BadInput(f"--output {path}: this is a file; a model is a folder. Give another name.")
    if path.is_dir() and any(path.iterdir()):
        raise BadInput(f"--output {path}: the folder is not empty; a model gets a new one. Give another name.")


def _note(source: ModelSource, adapter: Path) -> dict[str, Any]:
    """What `merge.json` holds. `manifest_sha256`: the data the run was trained on, None where there is no run."""
    run = read_config(adapter.parent) if source.stage else {}
    with (adapter / "adapter_model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": source.name,
        "stage": source.stage,
        "base": source.base,
        "rewards": source.gives_rewards,
        "max_length": source.max_length,
        "load_in_4bit": source.load_in_4bit,
        "adapter_sha256": digest,
        "manifest_sha256": run.get("manifest_sha256"),
    }


def _card(note: dict[str, Any], source: ModelSource) -> str:
    evaluation = (read_evaluation(source.adapter.parent) or {}) if source.stage and source.adapter else {}
    result = _IN_WORDS[source.stage](evaluation) if evaluation.get("eval") else ""
    return _CARD.format(
        kind="Reward model" if note["rewards"] else "Language model",
        model=note["model"],
        base=note["base"],
        data=f"manifest sha256 `{note['manifest_sha256']}`" if note["manifest_sha256"] else "not recorded",
        adapter=note["adapter_sha256"],
        loader="AutoModelForSequenceClassification" if note["rewards"] else "AutoModelForCausalLM",
        padding=', padding_side="right"' if note["rewards"] else "",
        use=_REWARDS if note["rewards"] else "",
        result=f"\nResult: {result}.\n" if result else "",
        four_bit=f"\nThe adapter was {MERGED_FROM_4BIT}.\n" if note["load_in_4bit"] else "",
    )


_IN_WORDS = {
    "rm": lambda evaluation: in_words(evaluation["eval"]),
    "sft": sft_in_words,
    "dpo": preference_in_words,
}

_REWARDS = """
The one logit of a row is its reward, read at the EOS token that ends the response. Encode prompt and response as one
conversation (chat template), let it end with the EOS token exactly once, pad on the right.
`python -m train score --model DIR` does all that.
"""

_CARD = """\
# {kind} {model}, merged

A LoRA adapter added into the weights of its base: a whole model in float32.
{result}
- run: `{model}`
- base: `{base}`
- data: {data}
- adapter: sha256 `{adapter}`

```python
from transformers import AutoTokenizer, {loader}

tokenizer = AutoTokenizer.from_pretrained("DIR"{padding})
model = {loader}.from_pretrained("DIR").eval()
```
{use}{four_bit}"""
