"""The reward model: the base with LoRA adapters and a float32 one-neuron head, read at the EOS of each response."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from data.errors import BadInput
from train.groups import Group, comparison_tensors
from train.models import ModelSource, known_warnings, load_config, load_weights

Batch = dict[str, Tensor]


class Layout(Protocol):
    """How the responses of some groups are laid out for the model. Trainer and evaluation know no more than this."""

    def collate(self, groups: Sequence[Group]) -> Batch:
        """What `scores` needs, and the comparisons (`groups.comparison_tensors`) as indices into its result."""

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """The rewards of all responses, group after group. Shape (number of responses,), float32."""


@dataclass(frozen=True)
class PaddedRows:
    """One row a response, padded on the right; a batch over `tokens_per_forward` is computed in parts.

    `fill`: the id in padded places. It is masked, so that any id of the embedding does.
    """

    tokens_per_forward: int
    fill: int = 0

    def collate(self, groups: Sequence[Group]) -> Batch:
        rows = [torch.tensor(row) for g in groups for row in g.rows]
        return {
            "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.fill),
            "lengths": torch.tensor([len(row) for row in rows]),
            **comparison_tensors(groups),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        ids, lengths = batch["input_ids"], batch["lengths"]
        parts = list(self._parts(lengths.tolist()))
        # With one part its activations are kept; with several, each part is computed again when its gradient is due.
        recompute = len(parts) > 1 and torch.is_grad_enabled()
        found = []
        for rows in parts:
            longest = int(lengths[rows].max())
            part = ids[rows, :longest], lengths[rows]
            found.append(
                checkpoint(_forward, model, *part, use_reentrant=False) if recompute else _forward(model, *part)
            )
        order = torch.tensor([i for rows in parts for i in rows], device=ids.device)
        return torch.cat(found)[torch.argsort(order)]

    def _parts(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers, rows of similar length together, as many as fit the token budget (one at least)."""
        part: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            if part and lengths[i] * (len(part) + 1) > self.tokens_per_forward:
                yield part
                part = []
            part.append(i)
        yield part


def _forward(model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    found: Tensor = model(input_ids=ids, attention_mask=mask.long(), lengths=lengths)
    return found


class Float32Head(nn.Linear):
    """A linear head that computes in float32, inside autocast too: rewards are compared in their third digit."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.to(self.weight.dtype), self.weight)


class _ScoredAtLengths:
    """For a sequence classifier: scores each row at its last token by its length, never by looking for padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, lengths: Tensor, **unused: Any) -> Tensor:
        """Shapes: ids and mask (N, T), lengths (N,); returns (N,)."""
        backbone = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        scores: Tensor = self.score(last).squeeze(-1)  # type: ignore[attr-defined]
        return scores


def new_reward_model(source: ModelSource, *, lora_r: int, lora_alpha: int, dtype: torch.dtype) -> PeftModel:
    """The base under fresh adapters on all linear layers, the head drawn from N(0, 1/(d+1)).

    Source of the head's scale: Stiennon et al. 2020 with the square root that Huang et al. 2024 found missing.
    The caller seeds torch first.
    """
    base = _load_classifier(source, dtype=dtype)
    head = base.score
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in base.modules()),
        modules_to_save=None,  # peft fills in the names of classification heads, `score` among them
    )
    with known_warnings():
        return cast(PeftModel, get_peft_model(base, config))


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
        architectures = AutoConfig.from_pretrained(source.base).architectures or []
        if not any(name.endswith("ForSequenceClassification") for name in architectures):
            raise BadInput(
                f"--model {source.name}: this model has no score head. Train one with `python -m train rm` and give "
                "its run folder."
            )
        return _load_classifier(source, dtype=dtype).eval()  # type: ignore[no-any-return]
    if source.stage not in ("", "rm"):
        raise BadInput(f"--model {source.name}: a run of '{source.stage}' gives no rewards. Give a run of 'rm'.")
    written = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if written.get("task_type") != TaskType.SEQ_CLS.value:
        raise BadInput(f"--model {source.name}: its adapter is no reward model. Give a run of `python -m train rm`.")
    base = _load_classifier(source, dtype=dtype)
    with known_warnings():
        return PeftModel.from_pretrained(base, source.adapter).eval()


@torch.inference_mode()
def score_groups(
    model: nn.Module, groups: Sequence[Group], layout: Layout, *, at_a_time: int = 16
) -> Iterator[tuple[int, list[float]]]:
    """Pairs of a group's number and its rewards, one a response; similar lengths together, so in no set order."""
    device = next(model.parameters()).device
    order = sorted(range(len(groups)), key=lambda i: max(map(len, groups[i].rows)))
    for start in range(0, len(order), at_a_time):
        numbers = order[start : start + at_a_time]
        batch = {k: v.to(device) for k, v in layout.collate([groups[i] for i in numbers]).items()}
        scores = iter(layout.scores(model, batch).tolist())
        for i in numbers:
            yield i, [next(scores) for _ in groups[i].rows]


def row_limit(config: PreTrainedConfig, *, asked: int) -> int:
    """The longest row in tokens: what was asked, at most what the model has positions for."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(asked, positions) if positions else asked


def _load_classifier(source: ModelSource, *, dtype: torch.dtype) -> Any:
    """The base as a sequence classifier with one label, scored at lengths, its head in float32 at least."""
    config = load_config(source, num_labels=1)
    family: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if family is None:
        raise BadInput(f"--model {source.name}: '{config.model_type}' models have no sequence classifier. Use another.")
    kind = type(family.__name__, (_ScoredAtLengths, family), {})
    model = load_weights(kind, source, config=config, dtype=dtype)
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
