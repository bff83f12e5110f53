"""The reward model: the base with LoRA adapters and a float32 one-neuron head, read at the EOS of each response."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from data.errors import BadInput
from train.lora_linear import add_on
from train.models import ModelSource, known_warnings, load_adapter, load_config, load_weights


class Float32Head(nn.Linear):
    """A linear head that computes in float32, inside autocast too: rewards are compared in their third digit."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.to(self.weight.dtype), self.weight)


class _ScoredAtEnds:
    """For a sequence classifier: scores tokens by their place, never by looking for padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, ends: Tensor, **options: Any) -> Tensor:
        """Shapes: ids (N, T), `ends` (R,) the scored tokens' places in the N*T; returns (R,)."""
        backbone = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        options = {name: options[name] for name in ("position_ids", "trees") if name in options}
        hidden = backbone(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
        ).last_hidden_state
        scores: Tensor = self.score(hidden.flatten(0, 1)[ends]).squeeze(-1)  # type: ignore[attr-defined]
        return scores


def new_reward_model(
    source: ModelSource,
    *,
    lora_r: int,
    lora_alpha: int,
    dtype: torch.dtype,
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
) -> PeftModel:
    """The base under fresh adapters on all linear layers, the head drawn from N(0, 1/(d+1)).

    Source of the head's scale: Stiennon et al. 2020 with the square root that Huang et al. 2024 found missing.
    The caller seeds torch first.
    """
    base = _load_classifier(source, dtype=dtype, load_in_4bit=load_in_4bit)
    head = base.score
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    model = add_adapters(base, TaskType.SEQ_CLS, lora_r=lora_r, lora_alpha=lora_alpha)
    if gradient_checkpointing:
        checkpoint_layers(base, source.name)
    return model


def add_adapters(base: Any, task: TaskType, *, lora_r: int, lora_alpha: int) -> PeftModel:
    """Fresh adapters on all linear layers. Without dropout: what is computed twice must be the same."""
    config = LoraConfig(
        task_type=task,
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in base.modules()),
        modules_to_save=None,  # of a classifier peft fills in the names of heads, `score` among them
    )
    with known_warnings():
        model = cast(PeftModel, get_peft_model(base, config))
    add_on(model)
    return model


def checkpoint_layers(base: Any, name: str) -> None:
    """Keep each layer's input only; the rest is computed again in the backward pass.

    The kind that is not reentrant follows the adapters' weights by itself: no input has to ask for a gradient.
    """
    try:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise BadInput(f"--gradient_checkpointing: the model {name} cannot do it. Leave it out.") from None


def let_signals_in(model: nn.Module) -> None:
    """Python sees a signal only between its own instructions, and a backward pass on a CPU runs none for many seconds.

    An empty hook at every adapted layer gives it some: Stop then takes a moment, not a step.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_hook(_hook_gradient)


def _hook_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]


def load_reward_model(source: ModelSource, *, dtype: torch.dtype) -> nn.Module:
    """A trained reward model, in evaluation mode. Raises BadInput where `source` is none."""
    if source.adapter is None:
        config = AutoConfig.from_pretrained(source.base)
        architectures = config.architectures or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise BadInput(
                f"--model {source.name}: this model has no score head. Train one with `python -m train rm` and give "
                "its run folder."
            )
        if config.num_labels != 1:
            raise BadInput(
                f"--model {source.name}: a classifier of {config.num_labels} labels; a reward model has one. Give a "
                "run of `python -m train rm`."
            )
        return _load_classifier(source, dtype=dtype).eval()  # type: ignore[no-any-return]
    if source.stage not in ("", "rm"):
        raise BadInput(f"--model {source.name}: a run of '{source.stage}' gives no rewards. Give a run of 'rm'.")
    if not source.gives_rewards:
        raise BadInput(f"--model {source.name}: its adapter is no reward model. Give a run of `python -m train rm`.")
    base = _load_classifier(source, dtype=dtype, load_in_4bit=source.load_in_4bit)
    return cast(nn.Module, load_adapter(base, source).eval())


def row_limit(config: PreTrainedConfig, *, asked: int) -> int:
    """The longest row in tokens: what was asked, at most what the model has positions for."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(asked, positions) if positions else asked


def _load_classifier(source: ModelSource, *, dtype: torch.dtype, load_in_4bit: bool = False) -> Any:
    """The base as a sequence classifier with one label, scored at lengths, its head in float32 at least."""
    config = load_config(source, num_labels=1)
    family: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if family is None:
        raise BadInput(f"--model {source.name}: '{config.model_type}' models have no sequence classifier. Use another.")
    kind = type(family.__name__, (_ScoredAtEnds, family), {})
    model = load_weights(kind, source, config=config, dtype=dtype, load_in_4bit=load_in_4bit)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise BadInput(
            f"--model {source.name}: '{config.model_type}' is no decoder with a linear head 'score'. Use another."
        )
    model.score = Float32Head(head.in_features, 1, bias=False)
    model.score.load_state_dict(head.state_dict())
    if dtype in (torch.float16, torch.bfloat16):
        model.score.float()
    else:
        model.score.to(dtype)
    return model
