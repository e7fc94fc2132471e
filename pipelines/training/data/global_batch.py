"""Order and random numbers of training as functions of the seed and of numbers: nothing of it needs to be saved.

One step works on one global batch: `size` rows for each process and each part of a step. A process takes its rows of
it; what is drawn for a row does not depend on which process has it.

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
    """One seed out of several numbers, as good as independent of that of any others."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(num_items: int, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Index batches without end, on the CPU: every pass in a new order, incomplete batches left out.

    With fewer items than a batch has, they are drawn again and again.

    Args:
        start: number of the first batch; batch n is the same wherever one begins.
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
    """The rows that this process works on, and random numbers for them.

    Args:
        size: B.
        parts: of a step (gradient accumulation).
        device: where random numbers are made.

    Attributes:
        generator: draws for the whole global batch, alike on all processes.
        own: draws for this process alone; what comes from it depends on the number of processes.
    """

    def __init__(self, *, size: int, parts: int, seed: int, device: torch.device) -> None:
        self.size, self.parts, self.seed, self.device = size, parts, seed, device
        self.part = 0
        self.rank, self.num_processes = process_rank(), num_processes()
        self.generator, self.own = torch.Generator(device), torch.Generator(device)
        self._seed(0, 0, self.rank)

    @property
    def total(self) -> int:
        """G."""
        return self.size * self.num_processes * self.parts

    @property
    def per_step(self) -> int:
        """How far a step moves the position in the data."""
        return self.total

    def begin(self, number: int, part: int) -> None:
        """Seed everything for one part of one step, torch's own generators (which dropout draws from) included."""
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
        """Of those that this process has in this part of the step."""
        return (self.part * self.num_processes + self.rank) * self.size

    def rows(self, values_G: Tensor) -> Tensor:
        """This process's rows of something that was made for all."""
        return values_G[self.first_row : self.first_row + self.size]

    def order(self, num_items: int, *, start: int) -> Iterator[Tensor]:
        """Endless indices of this process's samples (B,), part by part, from the step with the number `start`."""
        for index_G in epoch_order(num_items, self.total, seed=self.seed, start=start):
            parts = index_G.view(self.parts, self.num_processes, self.size)
            yield from parts[:, self.rank]

    def samples_at(self, num_items: int, number: int, part: int, rank: int) -> list[int]:
        """Indices of the samples that a process has in one part of one step."""
        index_G = next(epoch_order(num_items, self.total, seed=self.seed, start=number))
        return index_G.view(self.parts, self.num_processes, self.size)[part, rank].tolist()

    def single_views(self, num_orbits: int, num_views: int, *, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless pairs (orbits_B, views_B) on the CPU: every orbit equally often, one random view of it."""
        for orbits_B in self.order(num_orbits, start=start):
            yield orbits_B, self.randint(num_views, len(orbits_B)).cpu()

    def draw(self, make: Callable[..., Tensor], like_B: Tensor) -> Tensor:
        """This process's rows of `make(like, generator=...)` for the whole global batch.

        Another number of rows than B (a preview's) is drawn for this process alone.
        """
        if len(like_B) != self.size:
            return make(like_B, generator=self.own)
        like_G = like_B.new_empty(()).expand(self.total, *like_B.shape[1:])
        return self.rows(make(like_G, generator=self.generator))

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers; the first dimension is the rows."""
        return self.draw(_like(torch.rand), torch.empty((), device=self.device).expand(shape))

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers; the first dimension is the rows."""
        return self.draw(_like(torch.randn), torch.empty((), device=self.device).expand(shape))

    def randint(self, high: int, *shape: int) -> Tensor:
        """Integers below `high`; the first dimension is the rows."""
        make = _like(functools.partial(torch.randint, high))
        return self.draw(make, torch.empty((), device=self.device).expand(shape))

    def row_generators(self) -> list[torch.Generator]:
        """A fresh generator for each row."""
        seeds = [mixed_seed(self.seed, self.number, "row", self.first_row + row) for row in range(self.size)]
        return [torch.Generator(self.device).manual_seed(seed) for seed in seeds]


def _like(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda like, *, generator: make(like.shape, generator=generator, device=like.device)


class JointBatch(GlobalBatch):
    """A global batch whose parts have samples of one kind each.

    What a slot's rows are, and what is drawn for them, follows from the slot's number, whichever process has it.

    Args:
        frame_lens: views of a sample, slot after slot, again and again.
        sizes: B by number of views.

    Attributes:
        num_views: of the samples of the present slot.
    """

    def __init__(
        self, *, frame_lens: Sequence[int], sizes: Mapping[int, int], parts: int, seed: int, device: torch.device
    ) -> None:
        self.frame_lens, self.sizes = tuple(frame_lens), dict(sizes)
        self.num_views = self.frame_lens[0]
        super().__init__(size=self.sizes[self.num_views], parts=parts, seed=seed, device=device)

    @property
    def total(self) -> int:
        """B: rows that are drawn for at once."""
        return self.size

    @property
    def per_step(self) -> int:
        """Slots of a step, which are what the position in the data counts here."""
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
        """The number of a slot."""
        return (number * self.parts + part) * self.num_processes + rank

    def kind_of(self, slot: int) -> int:
        """Views of its samples."""
        return self.frame_lens[slot % len(self.frame_lens)]

    def number_in_kind(self, slot: int) -> int:
        """How many slots of the same kind come before."""
        rounds, place = divmod(slot, len(self.frame_lens))
        num_views = self.frame_lens[place]
        return rounds * self.frame_lens.count(num_views) + self.frame_lens[:place].count(num_views)

    def kind(self, num_views: int) -> KindOfBatch:
        """The same, as whoever reads samples of one kind sees it."""
        return KindOfBatch(self, num_views)

    def samples_at(self, num_items: int, number: int, part: int, rank: int) -> list[int]:
        slot = self.slot(number, part, rank)
        batches = self.kind(self.kind_of(slot)).all_batches(num_items, start=self.number_in_kind(slot))
        return next(batches).tolist()


class KindOfBatch:
    """Slots of one kind: what deals their samples."""

    def __init__(self, joint: JointBatch, num_views: int) -> None:
        self.joint, self.num_views, self.size = joint, num_views, joint.sizes[num_views]

    def numbers(self, *, start: int) -> Iterator[int]:
        """Without end: of this process's slots of this kind, how many of the kind come before each."""
        joint = self.joint
        for number in count(start):
            for part in range(joint.parts):
                slot = joint.slot(number, part, joint.rank)
                if joint.kind_of(slot) == self.num_views:
                    yield joint.number_in_kind(slot)

    def all_batches(self, num_items: int, *, start: int) -> Iterator[Tensor]:
        """Index batches (B,) of all slots of this kind, as `epoch_order` makes them."""
        return epoch_order(num_items, self.size, seed=mixed_seed(self.joint.seed, self.num_views), start=start)

    def order(self, num_items: int, *, start: int) -> Iterator[Tensor]:
        """As GlobalBatch.order."""
        batches, at = None, 0
        for number in self.numbers(start=start):
            if batches is None:
                batches, at = self.all_batches(num_items, start=number), number
            yield next(islice(batches, number - at, None))
            at = number + 1

    def ranges(self, *, start: int) -> Iterator[Tensor]:
        """The same for data that come in an endless order of their own."""
        for number in self.numbers(start=start):
            yield torch.arange(number * self.size, (number + 1) * self.size)
