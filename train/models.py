"""From what the user calls a model to files that can be loaded safely.

Safetensors only, no code from model folders, and always a pad token that is not the EOS token.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as library_log

from data.errors import BadInput, NotFound
from train import smollm2
from train.run import read_config

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SPARE = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<pad>", "[PAD]", "<unk>", "[UNK]")
"""Special tokens that models ship and do not use inside a conversation, in order of preference."""
_NEW_PAD = "<|pad|>"


@dataclass(frozen=True)
class ModelSource:
    """`base`: a local folder or a hub id. `adapter`: a LoRA folder on top of it. `stage`: what the run trained.

    `name` is what the user called it.
    """

    name: str
    base: str
    adapter: Path | None = None
    stage: str = ""
    max_length: int = 0
    """The longest prompt with response the run was trained on, in tokens; 0 where unknown."""

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer lies: beside the adapter, which remembers the pad token."""
        return str(self.adapter) if self.adapter and (self.adapter / "tokenizer_config.json").exists() else self.base


def resolve(name: str, *, workspace: Path) -> ModelSource:
    """Find what `name` stands for: smollm2-135m, a run, an adapter, a model folder or a hub id.

    Raises NotFound or BadInput with a sentence; nothing is loaded yet.
    """
    quiet_libraries()
    if name == smollm2.NAME:
        return ModelSource(name, str(smollm2.ensure(workspace)))
    path = Path(name).expanduser()
    if (path / "status.json").exists():
        return _run_source(name, path, workspace=workspace)
    if (path / "adapter_config.json").exists():
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return ModelSource(name, resolve(base, workspace=workspace).base, adapter=path.resolve())
    if path.is_dir():
        _check_folder(path)
        return ModelSource(name, str(path.resolve()))
    if not _HUB_ID.fullmatch(name) or path.exists():
        raise NotFound(
            f"--model {name}: there is no such model folder. Give a folder with config.json and safetensors weights, "
            f"a hub id, a run, or {smollm2.NAME}."
        )
    _check_hub(name)
    return ModelSource(name, name)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer, with an EOS token and a pad token that differ. Raises BadInput."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"--model {source.name}: its tokenizer cannot be loaded ({_first_line(error)}).") from None
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"--model {source.name}: its tokenizer has no EOS token; rewards are read there. "
            "Set eos_token in tokenizer_config.json."
        )
    _ensure_pad(tokenizer, source.name)
    return tokenizer


def load_config(source: ModelSource, **changes: Any) -> Any:
    """The base's config with every dropout at 0: scores and resumed runs must not depend on chance."""
    config = AutoConfig.from_pretrained(source.base, trust_remote_code=False, **changes)
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def load_causal(source: ModelSource, *, dtype: torch.dtype) -> Any:
    """A language model for generation, with its adapter if there is one, in evaluation mode."""
    if source.stage == "rm":
        raise BadInput(
            f"--model {source.name}: a reward model scores responses and writes none. Generate with its base "
            f"({source.base})."
        )
    model = load_weights(AutoModelForCausalLM, source, config=load_config(source), dtype=dtype)
    if source.adapter:
        from peft import PeftModel

        with known_warnings():
            model = PeftModel.from_pretrained(model, source.adapter)
    return model.eval()


def load_weights(kind: Any, source: ModelSource, *, config: Any, dtype: torch.dtype) -> Any:
    """`kind.from_pretrained` that reads safetensors only and says in a sentence why it cannot."""
    try:
        return kind.from_pretrained(
            source.base, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"--model {source.name}: its weights cannot be loaded ({_first_line(error)}).") from None


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def quiet_libraries() -> None:
    """Leave progress and log lines to us."""
    library_log.set_verbosity_error()  # type: ignore[no-untyped-call]
    library_log.disable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def known_warnings() -> Iterator[None]:
    """Around peft's constructors: peft 0.21 asks transformers 5.23 for an attribute by its deprecated name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def versions() -> dict[str, str]:
    """The libraries a result depends on."""
    import peft

    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def _run_source(name: str, path: Path, *, workspace: Path) -> ModelSource:
    adapter = path / "adapter"
    if not (adapter / "adapter_config.json").exists():
        raise BadInput(f"--model {name}: this run has no adapter yet. Let it finish, or continue it with --resume.")
    config = read_config(path)
    base = resolve(str(config["model"]), workspace=workspace)
    return ModelSource(
        name,
        base.base,
        adapter=adapter.resolve(),
        stage=str(config["stage"]),
        max_length=int(config.get("max_length", 0)),
    )


def _check_folder(path: Path) -> None:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            f"--model {path}: no config.json; this is no model folder. Give the folder that has it."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BadInput(f"--model {path}: config.json is no valid JSON. Download the model again.") from None
    _refuse_own_code(config, str(path))
    if not list(path.glob("*.safetensors")):
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern)]
        found = f"only {pickles[0]}, a format that can run code when it is read" if pickles else "no weights"
        raise BadInput(f"--model {path}: found {found}; weights must be safetensors. Convert them first.")


def _check_hub(name: str) -> None:
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise NotFound(
            f"--model {name}: no folder of that name here, and the model hub does not give it "
            f"({_first_line(error)}). Correct the name, connect, or use {smollm2.NAME}."
        ) from None
    _refuse_own_code(config, name)


def _refuse_own_code(config: dict[str, Any], name: str) -> None:
    if "auto_map" in config:
        raise BadInput(
            f"--model {name}: config.json asks to run code of its own (auto_map), which is never done. "
            "Use a model that the transformers library knows."
        )


def _ensure_pad(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Masks come from lengths here, but plain libraries look for the pad token: an EOS that is one would be hidden."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    known = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    spare = next((token for token in _SPARE if token in known and token not in taken), None)
    if spare is None:
        tokenizer.add_special_tokens({"pad_token": _NEW_PAD})
        log.info("%s: pad token %s added (id %d)", name, _NEW_PAD, tokenizer.pad_token_id)
    else:
        tokenizer.pad_token = spare
        log.info("%s: pad token %s (id %d), since EOS must not be it", name, spare, tokenizer.pad_token_id)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
