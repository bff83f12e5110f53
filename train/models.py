"""From what the user calls a model to files that can be loaded safely.

Safetensors only, no code from model folders, and always a pad token that is not the EOS token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as library_log

from data.errors import BadInput, NotFound
from train import four_bit, smollm2
from train.chat import ADDED_PAD
from train.files import exclusive, whole_folder
from train.model_folders import check_folder, check_vocabulary, refuse_own_code
from train.products import use_fast_products
from train.run import read_config, read_status

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SPARE = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<pad>", "[PAD]", "<unk>", "[UNK]")
"""Special tokens that models ship and do not use inside a conversation, in order of preference."""
MERGED_FROM_4BIT = "trained on the base in 4 bits, merged into the base in full precision: results differ slightly"
MERGE_NOTE = "merge.json"
"""In a folder that `python -m train merge` wrote: what was merged, and the run's max_length."""


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
    load_in_4bit: bool = False
    """The adapter was trained on the base in 4 bits, and is loaded on it so again."""

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer lies: beside the adapter, which remembers the pad token."""
        return str(self.adapter) if self.adapter and (self.adapter / "tokenizer_config.json").exists() else self.base

    @property
    def gives_rewards(self) -> bool:
        """Whether the adapter is that of a reward model."""
        return self.adapter is not None and _adapter_config(self.name, self.adapter).get("task_type") == "SEQ_CLS"


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
        if path.name == "adapter" and (path.parent / "status.json").exists():
            return _run_source(name, path.parent, workspace=workspace)
        base = _adapter_config(name, path).get("base_model_name_or_path")
        return ModelSource(name, _base(name, str(base), workspace=workspace), adapter=path.resolve())
    if path.is_dir():
        check_folder(path)
        merged = path / MERGE_NOTE
        note = json.loads(merged.read_text(encoding="utf-8")) if merged.exists() else {}
        return ModelSource(name, str(path.resolve()), max_length=int(note.get("max_length", 0)))
    if not _HUB_ID.fullmatch(name) or path.exists():
        raise NotFound(
            f"--model {name}: there is no such model folder. Give a folder with config.json and safetensors weights, "
            f"a hub id, a run, or {smollm2.NAME}."
        )
    _check_hub(name)
    return ModelSource(name, name)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer, with an EOS token and a pad token that differ, and ids that the model knows. Raises BadInput."""
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
    embedded = getattr(load_config(source).get_text_config(), "vocab_size", None)
    check_vocabulary(tokenizer, embedded, name=source.name)
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
    if source.gives_rewards:
        raise BadInput(
            f"--model {source.name}: a reward model scores responses and writes none. Generate with its base "
            f"({source.base})."
        )
    config = load_config(source)
    model = load_weights(AutoModelForCausalLM, source, config=config, dtype=dtype, load_in_4bit=source.load_in_4bit)
    return (load_adapter(model, source) if source.adapter else model).eval()


def load_weights(kind: Any, source: ModelSource, *, config: Any, dtype: torch.dtype, load_in_4bit: bool = False) -> Any:
    """`kind.from_pretrained` that reads safetensors only and says in a sentence why it cannot.

    In 4 bits, a language model's output layer and a classifier's head `score` stay in `dtype`, as do embeddings and
    norms, and what is computed.
    """
    options = {}
    if load_in_4bit:
        # None: the library leaves out a language model's output layer by itself.
        whole = ["score"] if "SequenceClassification" in kind.__name__ else None
        options["quantization_config"] = four_bit.quantization(dtype, whole=whole, device=device())
    try:
        model = kind.from_pretrained(
            source.base, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise BadInput(f"--model {source.name}: its weights cannot be loaded ({_first_line(error)}).") from None
    except UnpicklingError:  # a file of the model hub that an index names
        raise BadInput(f"--model {source.name}: its weights can run code when they are read. Use another.") from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise BadInput(
            f"--model {source.name}: its weights have other sizes than config.json says. Download the model again."
        ) from None
    if load_in_4bit:
        four_bit.stay_differentiable(model)
    use_fast_products(model)
    return model


def load_adapter(model: Any, source: ModelSource, *, trainable: bool = False) -> Any:
    """The source's adapter on `model`, the base of the right kind. Raises BadInput where it does not fit."""
    from peft import PeftModel

    from train.lora_linear import add_on

    try:
        with known_warnings():
            adapted = PeftModel.from_pretrained(
                model, str(source.adapter), torch_device=str(model.device), is_trainable=trainable
            )
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise BadInput(
            f"--model {source.name}: its adapter does not fit its base {source.base} ({_first_line(error)})."
        ) from None
    add_on(adapted)
    return adapted


def merge_adapter(model: Any, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> Any:
    """`model`, the base, with the adapter added into its weights, and with the tokenizer's pad token known to it."""
    try:
        merged = load_adapter(model, source).merge_and_unload(safe_merge=True)
    except ValueError:
        raise BadInput(f"--model {source.name}: its adapter holds numbers that are not finite. Train again.") from None
    make_pad_known(merged, tokenizer)
    return merged


def make_pad_known(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a whole model the tokenizer's pad token; one that it has no place for gets the mean of all embeddings.

    A language model then gives it about the probability of an average token (Hewitt 2021), not that of a random
    direction.
    """
    known = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id >= known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
                layer.weight[known:] = layer.weight[:known].mean(dim=0)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def trainable_base(source: ModelSource, workspace: Path) -> ModelSource:
    """What later stages train on: `source` itself, or with an SFT adapter its base with that merged in.

    The merged model is made once (float32) and kept in WORKSPACE/models. Raises BadInput for a reward model.
    """
    if source.adapter is None:
        return source
    if source.gives_rewards:
        raise BadInput(f"--model {source.name}: rewards cannot be a base. Start from {source.base}.")
    models = (workspace / "models").resolve()
    folder = models / f"merged-{_identity(source, source.adapter)}"
    with exclusive(models / f".{folder.name}.lock"):
        if not folder.exists():
            tokenizer = load_tokenizer(source)
            config = AutoConfig.from_pretrained(source.base, trust_remote_code=False)
            model = load_weights(AutoModelForCausalLM, source, config=config, dtype=torch.float32)
            with whole_folder(folder) as unfinished:
                merge_adapter(model, source, tokenizer).save_pretrained(unfinished)
                tokenizer.save_pretrained(unfinished)
    log.info("%s: its adapter merged into %s, kept in %s", source.name, source.base, folder)
    if source.load_in_4bit:
        log.info("%s: %s", source.name, MERGED_FROM_4BIT)
    return ModelSource(source.name, str(folder))


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
    """Around peft's constructors: peft 0.21 asks transformers 5.23 for an attribute by its deprecated name.

    And it says when it turns weights around, which an adapter made on a 4-bit GPT-2 needs on that in full precision.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield


def versions() -> dict[str, str]:
    """The libraries a result depends on."""
    import peft

    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def _run_source(name: str, path: Path, *, workspace: Path) -> ModelSource:
    adapter, whole = path / "adapter", path / "model"
    if (whole / "config.json").exists():
        check_folder(whole)
        config = read_config(path)
        return ModelSource(
            name, str(whole.resolve()), stage=read_status(path).stage, max_length=int(config.get("max_length", 0))
        )
    if not (adapter / "adapter_config.json").exists():
        raise BadInput(f"--model {name}: this run has no adapter yet. Let it finish, or continue it with --resume.")
    _adapter_config(name, adapter)
    config = read_config(path)
    return ModelSource(
        name,
        _base(name, str(config["model"]), workspace=workspace),
        adapter=adapter.resolve(),
        stage=read_status(path).stage,
        max_length=int(config.get("max_length", 0)),
        load_in_4bit=bool(config.get("load_in_4bit", False)),
    )


def _base(name: str, base: str, *, workspace: Path) -> str:
    """The base that an adapter names: whole weights, since an adapter on an adapter would lose the lower one."""
    found = resolve(base, workspace=workspace)
    if found.adapter:
        raise BadInput(
            f"--model {name}: its base {base} is an adapter itself. Merge that with `python -m train merge` first."
        )
    return found.base


def _adapter_config(name: str, adapter: Path) -> dict[str, Any]:
    """adapter_config.json, with safetensors weights beside it. Raises BadInput."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BadInput(f"--model {name}: adapter_config.json is no valid JSON. Save the adapter again.") from None
    if not (adapter / "adapter_model.safetensors").exists():
        raise BadInput(
            f"--model {name}: no adapter_model.safetensors; weights must be safetensors. Convert them first."
        )
    return dict(config)


def _identity(source: ModelSource, adapter: Path) -> str:
    """16 hex digits that change with the adapter's files or the base. A local base is known by place, size and time."""
    digest = hashlib.sha256(source.base.encode())
    for path in sorted(p for p in adapter.iterdir() if p.is_file()):
        _feed(digest, path)
    base = Path(source.base)
    if base.is_dir():
        stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(base.iterdir()) if p.is_file()]
        digest.update(repr(stats).encode())
    else:
        digest.update(_hub_commit(source.base).encode())
    return digest.hexdigest()[:16]


def weights_sha256(source: ModelSource) -> str:
    """sha256 of the base's config and weights; of a hub model, of its name and commit."""
    base = Path(source.base)
    if not base.is_dir():
        return hashlib.sha256(f"{source.base} {_hub_commit(source.base)}".encode()).hexdigest()
    digest = hashlib.sha256()
    for path in [base / "config.json", *sorted(base.glob("*.safetensors"))]:
        _feed(digest, path)
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the vocabulary and the chat template: what decides how a conversation becomes ids."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    rules = core.to_str() if core is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{rules}\n{tokenizer.chat_template}".encode()).hexdigest()


def _feed(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())


def _hub_commit(name: str) -> str:
    return str(getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None))


def _check_hub(name: str) -> None:
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise NotFound(
            f"--model {name}: no folder of that name here, and the model hub does not give it "
            f"({_first_line(error)}). Correct the name, connect, or use {smollm2.NAME}."
        ) from None
    refuse_own_code(config, name)


def _ensure_pad(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Masks come from lengths here, but plain libraries look for the pad token: an EOS that is one would be hidden."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    known = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    spare = next((token for token in _SPARE if token in known and token not in taken), None)
    if spare is None:
        tokenizer.add_special_tokens({"pad_token": ADDED_PAD})
        log.info("%s: pad token %s added (id %d)", name, ADDED_PAD, tokenizer.pad_token_id)
    else:
        tokenizer.pad_token = spare
        log.info("%s: pad token %s (id %d), since EOS must not be it", name, spare, tokenizer.pad_token_id)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
