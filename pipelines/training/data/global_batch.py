"""The order of the data and the random numbers of training, as functions of seed and step.

Therefore no generator needs to be saved. One step uses one global batch, with `size` rows for each process and each
part of a step. The random numbers of a row do not depend on its process.

Letters: G rows of the global batch, B rows of one process in one part of a step.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from utils.processes import num_processes, process_rank


def mixed_seed(*numbers: int | str) -> int:
    """Mix several numbers into one seed, which is practically independent of the seeds of other numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(num_items: int, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Yield index batches without end, on the CPU: a new order for every pass, without incomplete batches.

    If there are fewer items than a batch needs, they are drawn with replacement.

    Args:
        start: number of the first batch; batch n is the same for any start.
    """
    generator, number, in_order = torch.Generator(), start, None
    per_epoch = num_items // batch_size
    while True:
        if not per_epoch:
            generator.manual_seed(mixed_seed(seed, "few", number))
            yield torch.randint(num_items, (batch_size,), generator=generator)
        else:
            epoch, place = divmod(number, per_epoch)
            if in_order is None or place == 0:
                generator.manual_seed(mixed_seed(seed, "epoch", epoch))
                in_order = torch.randperm(num_items, generator=generator)
            yield in_order[place * batch_size : (place + 1) * batch_size]
        number += 1


class GlobalBatch:
    """The rows of this process, and random numbers for them.

    Args:
        size: B.
        parts: number of parts of a step (gradient accumulation).
        device: device of the random numbers.

    Attributes:
        generator: for the whole global batch; it draws the same numbers on all processes.
        own: for this process only; its numbers depend on the number of processes.
    """

    def __init__(self, *, size: int, parts: int, seed: int, device: torch.device) -> None:
        self.size, self.parts, self.seed, self.device = size, parts, seed, device
        self.part = 0
        self.rank, self.num_processes = process_rank(), num_processes()
        self.generator, self.own = torch.Generator(device), torch.Generator(device)
        self._seed(0, 0, self.rank)

    @property
    def total(self) -> int:
        """G, the number of rows of the global batch."""
        return self.size * self.num_processes * self.parts

    @property
    def per_step(self) -> int:
        """By how much a step advances the position in the data."""
        return self.total

    def begin(self, number: int, part: int) -> None:
        """Seed everything for one part of one step, including the global generators of torch (for dropout)."""
        self.part = part
        torch.manual_seed(self._seed(number, part, self.rank))

    def _seed(self, number: int, *place: int) -> int:
        self.number = number
        self.generator.manual_seed(mixed_seed(self.seed, number))
        own = mixed_seed(self.seed, number, *place)
        self.own.manual_seed(own)
        return own

    @property
    def first_row(self) -> int:
        """Index of the first row of this process in this part of the step."""
        return (self.part * self.num_processes + self.rank) * self.size

    def rows(self, values_G: Tensor) -> Tensor:
        """Return this process's rows of values for the global batch."""
        return values_G[self.first_row : self.first_row + self.size]

    def order(self, num_items: int, *, start: int) -> Iterator[Tensor]:
        """Yield the indices (B,) of this process's samples without end, part by part, from step `start` on."""
        for index_G in epoch_order(num_items, self.total, seed=self.seed, start=start):
            parts = index_G.view(self.parts, self.num_processes, self.size)
            yield from parts[:, self.rank]

    def samples_at(self, num_items: int, number: int, part: int, rank: int) -> list[int]:
        """Return the indices of the samples of a process in one part of one step."""
        index_G = next(epoch_order(num_items, self.total, seed=self.seed, start=number))
        return index_G.view(self.parts, self.num_processes, self.size)[part, rank].tolist()

    def single_views(self, num_orbits: int, num_views: int, *, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs (orbits_B, views_B) on the CPU without end: each orbit equally often, with one random view."""
        for orbits_B in self.order(num_orbits, start=start):
            yield orbits_B, self.randint(num_views, len(orbits_B)).cpu()

    def draw(self, make: Callable[..., Tensor], like_B: Tensor) -> Tensor:
        """Draw `make(like, generator=...)` for the whole global batch, and return this process's rows.

        If `like_B` does not have B rows (as in a preview), draw for this process only.
        """
        if len(like_B) != self.size:
            return make(like_B, generator=self.own)
        like_G = like_B.new_empty(()).expand(self.total, *like_B.shape[1:])
        return self.rows(make(like_G, generator=self.generator))

    def rand(self, *shape: int) -> Tensor:
        """Draw uniform numbers in [0, 1); the first dimension is the rows."""
        return self.draw(_like(torch.rand), torch.empty((), device=self.device).expand(shape))

    def randn(self, *shape: int) -> Tensor:
        """Draw normal numbers; the first dimension is the rows."""
        return self.draw(_like(torch.randn), torch.empty((), device=self.device).expand(shape))

    def randint(self, high: int, *shape: int) -> Tensor:
        """Draw integers from 0 to `high` - 1; the first dimension is the rows."""
        make = _like(functools.partial(torch.randint, high))
        return self.draw(make, torch.empty((), device=self.device).expand(shape))

    def choices(self, counts_B: Sequence[int]) -> list[int]:
        """Choose one of several for each row, such as one of its captions.

        No random numbers of `generator` are used, so that other draws do not depend on the number of captions.
        """
        rows = enumerate(counts_B, start=self.first_row)
        return [mixed_seed(self.seed, self.number, "choice", row) % count for row, count in rows]

    def row_generators(self) -> list[torch.Generator]:
        """Make a new generator for each row."""
        seeds = [mixed_seed(self.seed, self.number, "row", self.first_row + row) for row in range(self.size)]
        return [torch.Generator(self.device).manual_seed(seed) for seed in seeds]


def _like(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda like, *, generator: make(like.shape, generator=generator, device=like.device)


class JointBatch(GlobalBatch):
    """A global batch of slots; the samples of a slot are of one kind, images or orbits.

    The rows of a slot and their random numbers depend only on the number of the slot, not on its process.

    Args:
        frame_lens: number of views of a sample in each slot, repeated periodically.
        sizes: B by number of views.

    Attributes:
        num_views: number of views of a sample in the present slot.
    """

    def __init__(
        self, *, frame_lens: Sequence[int], sizes: Mapping[int, int], parts: int, seed: int, device: torch.device
    ) -> None:
        self.frame_lens, self.sizes = tuple(frame_lens), dict(sizes)
        self.num_views = self.frame_lens[0]
        super().__init__(size=self.sizes[self.num_views], parts=parts, seed=seed, device=device)

    @property
    def total(self) -> int:
        """B, because random numbers are drawn for one slot at a time."""
        return self.size

    @property
    def per_step(self) -> int:
        """Number of slots in a step; here the position in the data counts slots."""
        return self.num_processes * self.parts

    @property
    def first_row(self) -> int:
        return 0

    def begin(self, number: int, part: int) -> None:
        slot = self.slot(number, part, self.rank)
        self.part, self.num_views = part, self.kind_of(slot)
        self.size = self.sizes[self.num_views]
        torch.manual_seed(self._seed(slot, "slot"))

    def slot(self, number: int, part: int, rank: int) -> int:
        """Return the number of a slot."""
        return (number * self.parts + part) * self.num_processes + rank

    def kind_of(self, slot: int) -> int:
        """Return the number of views of a sample in a slot."""
        return self.frame_lens[slot % len(self.frame_lens)]

    def number_in_kind(self, slot: int) -> int:
        """Return the number of earlier slots of the same kind."""
        rounds, place = divmod(slot, len(self.frame_lens))
        num_views = self.frame_lens[place]
        return rounds * self.frame_lens.count(num_views) + self.frame_lens[:place].count(num_views)

    def kind(self, num_views: int) -> KindOfBatch:
        """Return the slots of one kind, for reading samples of this kind."""
        return KindOfBatch(self, num_views)

    def samples_at(self, num_items: int, number: int, part: int, rank: int) -> list[int]:
        slot = self.slot(number, part, rank)
        batches = self.kind(self.kind_of(slot)).all_batches(num_items, start=self.number_in_kind(slot))
        return next(batches).tolist()


class KindOfBatch:
    """The slots of one kind, which determine the samples of each batch of this kind."""

    def __init__(self, joint: JointBatch, num_views: int) -> None:
        self.joint, self.num_views, self.size = joint, num_views, joint.sizes[num_views]

    def numbers(self, *, start: int) -> Iterator[int]:
        """Yield without end, for this process's slots of this kind, their numbers within the kind."""
        joint = self.joint
        for number in count(start):
            for part in range(joint.parts):
                slot = joint.slot(number, part, joint.rank)
                if joint.kind_of(slot) == self.num_views:
                    yield joint.number_in_kind(slot)

    def all_batches(self, num_items: int, *, start: int) -> Iterator[Tensor]:
        """Yield the index batches (B,) of all slots of this kind, see `epoch_order`."""
        return epoch_order(num_items, self.size, seed=mixed_seed(self.joint.seed, self.num_views), start=start)

    def order(self, num_items: int, *, start: int) -> Iterator[Tensor]:
        """Yield the indices (B,) of this process's samples of this kind, as GlobalBatch.order does."""
        batches, at = None, 0
        for number in self.numbers(start=start):
            if batches is None:
                batches, at = self.all_batches(num_items, start=number), number
            yield next(islice(batches, number - at, None))
            at = number + 1

    def ranges(self, *, start: int) -> Iterator[Tensor]:
        """Yield consecutive indices (B,), for data sets that are endless streams."""
        for number in self.numbers(start=start):
            yield torch.arange(number * self.size, (number + 1) * self.size)
