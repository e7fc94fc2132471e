"""Images beside orbits: which of them each process works on, as a function of numbers.

A slot is one part of a step on one process. Slots are numbered through all steps; slot s works on samples of
`frame_lens[s % len(frame_lens)]` views, so that as published a process whose entry is 1 trains on images, where there
are as many processes as entries. With fewer, a process takes both kinds in turn, in the same proportion.

Letters: B rows of a slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from pipelines.training.data.global_batch import GlobalBatch, epoch_order, mixed_seed


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
