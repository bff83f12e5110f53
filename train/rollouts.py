"""What the actor wrote in a step, and how it is laid out for the model again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.records import PromptRecord, Response
from train.groups import Group
from train.layouts import Batch, Layout, parts, to_device
from train.sampling import Sample


@dataclass(frozen=True)
class Prompt:
    """One prompt, and its token ids up to where a response begins."""

    record: PromptRecord
    ids: tuple[int, ...]


@dataclass(frozen=True)
class RolloutSampling:
    """Plain sampling at a temperature: nothing else may change the distribution that log-probs are taken of."""

    samples: int
    temperature: float
    max_new_tokens: int
    batch_size: int
    seed: int
    top_p: float = 1.0


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's sampling: a resumed run writes what the uninterrupted one did."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:6])


@dataclass(frozen=True)
class Row:
    """One forward of some responses. `inputs` as a layout makes them, on the model's device.

    Of each learned token, shapes (N,): `responses`, whose it is, counted over the whole step; `positions`, its number
    within that response. `ended`: the responses whose last token this row holds, in the order of its `ends`.
    """

    inputs: Batch
    responses: Tensor
    positions: Tensor
    ended: Tensor


@dataclass(frozen=True)
class Rollouts:
    """B prompts with K responses each; R = B * K responses in order, the longest of T tokens, EOS included."""

    prompts: tuple[Prompt, ...]
    samples: tuple[tuple[Sample, ...], ...]
    groups: tuple[Group, ...]

    @property
    def flat(self) -> list[Sample]:
        """All responses in order."""
        return [s for own in self.samples for s in own]

    @property
    def per_prompt(self) -> int:
        """K."""
        return len(self.samples[0])

    def lengths(self) -> Tensor:
        """Tokens of each response, EOS included. Shape (R,)."""
        return torch.tensor([len(s.ids) for s in self.flat])

    def mask(self) -> Tensor:
        """True at response tokens. Shape (R, T)."""
        lengths = self.lengths()
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def records(self) -> list[PromptRecord]:
        """The responses as text, for whoever scores text."""
        return [
            PromptRecord(p.record.prompt, tuple(Response(s.text) for s in own), id=p.record.id)
            for p, own in zip(self.prompts, self.samples, strict=True)
        ]

    def rows(self, layout: Layout, device: torch.device, *, numbers: Sequence[int] | None = None) -> Iterator[Row]:
        """Forwards of at most `tokens_per_forward` tokens, over the prompts `numbers` (all by default)."""
        chosen = list(range(len(self.groups)) if numbers is None else numbers)
        for part in parts(layout, [self.groups[n] for n in chosen]):
            asked = [chosen[i] for i in part]
            first = [n * self.per_prompt + k for n in asked for k in range(self.per_prompt)]
            done = 0
            for inputs in layout.rows([self.groups[n] for n in asked]):
                count = len(inputs["ends"])
                ended = torch.tensor(first[done : done + count])
                done += count
                owners = inputs["owners"]
                starts = torch.searchsorted(owners, torch.arange(count))  # owners rise
                positions = torch.arange(len(owners)) - starts[owners]
                yield Row(to_device(inputs, device), ended[owners], positions, ended)


def rollouts_of(prompts: Sequence[Prompt], samples: Sequence[Sequence[Sample]]) -> Rollouts:
    """Prompts and what was written to them."""
    groups = [
        Group(
            p.record.id,
            rows=tuple((*p.ids, *s.ids) for s in own),
            chars=tuple(len(s.text) for s in own),
            shared=len(p.ids),
        )
        for p, own in zip(prompts, samples, strict=True)
    ]
    return Rollouts(tuple(prompts), tuple(map(tuple, samples)), tuple(groups))


def repetition(ids: Sequence[int], *, width: int = 4) -> float:
    """Share of a response's runs of `width` tokens that came before in it; 0 where it is shorter."""
    runs = [tuple(ids[i : i + width]) for i in range(len(ids) - width + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
