"""Which groups make up each optimiser step, and which of a step's groups each process computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch


class Batches(Protocol):
    """Numbers of groups, step by step; the same in every process."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class GroupBatches:
    """Batches of `size` groups (the last one may have fewer), dealt out in a new order each epoch."""

    def __init__(self, count: int, size: int, *, seed: int) -> None:
        self._count = count
        self._size = size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._count // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        chance = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._count, generator=chance).tolist()
        yield from (order[i : i + self._size] for i in range(0, self._count, self._size))


class TokenBatches:
    """Batches of at most `tokens` tokens (one group at least): filled once, their order drawn anew each epoch.

    Filled once, so that every epoch has the same number of steps and a resumed run meets the same batches.
    """

    def __init__(self, sizes: Sequence[int], tokens: int, *, seed: int) -> None:
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
        self._batches: list[list[int]] = []
        spent = tokens
        for i in order:
            if not self._batches or spent + sizes[i] > tokens:
                self._batches.append([])
                spent = 0
            self._batches[-1].append(i)
            spent += sizes[i]
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.Generator().manual_seed(self._seed + 1 + self._epoch)
        yield from (self._batches[i] for i in torch.randperm(len(self._batches), generator=order).tolist())


class OwnShare:
    """Of each batch the groups that fall to one process: none, where a batch has fewer groups than there are processes.

    Every process has as many batches, so that all take the same steps; no group is computed twice or left out, as the
    library does to make batches even.
    """

    def __init__(self, batches: Batches, sizes: Sequence[int], *, rank: int, world_size: int) -> None:
        """`sizes`: each group's tokens."""
        self._batches = batches
        self._sizes = sizes
        self._rank = rank
        self._world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield shares(batch, self._sizes, world_size=self._world_size)[self._rank]


def shares(batch: Sequence[int], sizes: Sequence[int], *, world_size: int) -> list[list[int]]:
    """A batch dealt out, the largest group first, each to the process with the fewest tokens so far; in their order."""
    own: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for place in sorted(range(len(batch)), key=lambda n: (-sizes[batch[n]], n)):
        lightest = tokens.index(min(tokens))
        own[lightest].append(place)
        tokens[lightest] += sizes[batch[place]]
    return [[batch[place] for place in sorted(part)] for part in own]
