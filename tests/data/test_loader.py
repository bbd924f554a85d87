"""Splits of a user's own loaders: their order, what they skip, and what they refuse."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from prunus.data import LoaderSplit, StreamSplit, split_given, unpack
from prunus.data.unpacking import with_targets
from prunus.errors import UserError


class Noisy(Dataset):
    """Numbers with noise from all three random states; it counts what is read."""

    def __init__(self, size: int = 23):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002 (the global one is meant)
        return torch.stack([torch.tensor(float(index)), noise]), index


class Numbers(IterableDataset):
    """Numbers that come in order, with noise."""

    def __iter__(self):
        for number in range(10):
            yield torch.tensor([float(number), torch.rand(())]), number


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def loader_split(dataset=None, **options):
    return split_given(
        DataLoader(dataset or Noisy(), **({"batch_size": 5, "shuffle": True} | options)), "train", unpack
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_epoch_and_number_alone(workers):
    split, plain = loader_split(num_workers=workers), loader_split()
    torch.manual_seed(1)
    whole = list(split.batches(1, seed=3, epoch=1))
    torch.manual_seed(2)
    assert same(whole, list(plain.batches(1, seed=3, epoch=1)))
    assert same(whole[2:], list(split.batches(1, seed=3, epoch=1, start=2)))
    for seed, epoch in ((3, 2), (4, 1)):
        others = list(plain.batches(1, seed=seed, epoch=epoch))
        assert not torch.equal(whole[0][1], others[0][1]) and not torch.equal(
            whole[0][0][:, 1], others[0][0][:, 1]
        )
    assert sorted(y for _, ys in whole for y in ys.tolist()) == list(range(23))


def test_batches_before_the_start_are_not_read():
    dataset = Noisy()
    split = loader_split(dataset, shuffle=False)
    assert (len(split), split.steps(999), split.batch_size) == (23, 5, 5) and not dataset.read
    next(split.batches(1, start=3))
    assert dataset.read == [15, 16, 17, 18, 19]


def test_reading_leaves_the_random_states_and_the_loaders_generator_alone():
    generator = torch.Generator().manual_seed(5)
    split = loader_split(generator=generator)
    before = torch.get_rng_state(), generator.get_state()
    list(split.batches(1, seed=0))
    assert torch.equal(before[0], torch.get_rng_state()) and torch.equal(before[1], generator.get_state())


def test_processes_share_every_batch():
    split = loader_split()
    parts = [[y.tolist() for _, y in split.batches(1, seed=0, share=(rank, 2))] for rank in range(2)]
    whole = [y.tolist() for _, y in split.batches(1, seed=0)]
    assert [one + two for one, two in zip(*parts, strict=True)] == [y[::2] + y[1::2] for y in whole]
    batches = split_given([(torch.arange(4), torch.arange(4))], "train", unpack)
    assert next(batches.batches(1, share=(1, 2)))[0].tolist() == [1, 3]


def test_held_out_examples_are_apart_and_the_same_for_the_same_seed():
    split = loader_split()
    rest, held = split.hold_out(0.25, seed=1)
    numbers = [sorted(y for _, ys in part.batches(1, seed=7) for y in ys.tolist()) for part in (rest, held)]
    assert (len(rest), len(held)) == (17, 6) and sorted(numbers[0] + numbers[1]) == list(range(23))
    again = split.hold_out(0.25, seed=1)[1]
    assert sorted(y for _, ys in again.batches(1) for y in ys.tolist()) == numbers[1]
    _, targets = rest.take(np.array([3, 1])).read(np.array([1, 0]))
    assert targets.tolist() == [numbers[0][1], numbers[0][3]]


def test_changes_by_a_draw_are_the_same_for_the_same_numbers():
    split = loader_split()
    one, other, third = (split.read(np.arange(3), draw)[0] for draw in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_a_list_of_batches_is_held_out_by_batches():
    batches = [(torch.full((size,), float(size)), torch.zeros(size)) for size in (3, 4, 5, 6)]
    split = split_given(batches, "train", unpack)
    assert isinstance(split, LoaderSplit) and (len(split), split.steps(1), split.batch_size) == (18, 4, 3)
    rest, held = split.hold_out(0.25, seed=0)
    assert len(rest) + len(held) == 18 and (rest.steps(1), held.steps(1)) == (3, 1)
    with pytest.raises(UserError, match="list of whole batches, of which single examples cannot be had"):
        split.take(np.arange(2))


@pytest.mark.parametrize(
    "sampler", [WeightedRandomSampler(torch.ones(23), 23), RandomSampler(Noisy(), replacement=True)]
)
def test_nothing_is_held_out_of_a_sampler_that_repeats_examples(sampler):
    split = loader_split(shuffle=None, sampler=sampler)
    assert same(list(split.batches(1, seed=1, start=2)), list(split.batches(1, seed=1))[2:])
    with pytest.raises(UserError, match="held out only of a loader that reads each once"):
        split.hold_out(0.2, 0)


def test_a_sampler_with_another_number_of_batches_in_an_epoch_is_refused():
    class Growing(BatchSampler):
        times = 0

        def __iter__(self):
            self.times += 1
            return itertools.islice(super().__iter__(), self.times)

    loader = DataLoader(Noisy(), batch_sampler=Growing(RandomSampler(Noisy()), 5, False))
    split = LoaderSplit(loader, "train", unpack)
    assert split.steps(1) == 1
    with pytest.raises(UserError, match="the sampler gave 2 batches in epoch 4, but 1 at first"):
        next(split.batches(1, seed=0, epoch=3))


def test_a_stream_says_what_it_cannot_promise_and_repeats_what_it_can():
    with pytest.warns(UserWarning, match="only if every pass over it gives the same batches"):
        split = split_given(DataLoader(Numbers(), batch_size=4), "train", unpack)
    assert isinstance(split, StreamSplit) and (len(split), split.steps(1), split.batch_size) == (10, 3, 4)
    whole = list(split.batches(1, seed=0, epoch=2))
    assert same(whole[1:], list(split.batches(1, seed=0, epoch=2, start=1)))
    assert not same(whole, list(split.batches(1, seed=0, epoch=3)))
    with pytest.raises(UserError, match="so no examples can be held out of it"):
        split.hold_out(0.1, 0)


class Ending:
    """An iterable that gives fewer batches in each pass."""

    def __init__(self):
        self.left = 4

    def __iter__(self):
        self.left -= 1
        return iter([(torch.zeros(2, 1), torch.zeros(2))] * self.left)


def test_a_source_that_is_exhausted_is_refused():
    split = split_given(Ending(), "val", unpack)
    split.steps(1)
    with pytest.raises(UserError, match=r"val gave [12] batches in epoch 1, but 3 when it was first read"):
        list(split.batches(1))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ((batch for batch in [1]), "generator, which can be read once only"),
        (torch.zeros(3), "should be a DataLoader or another iterable of batches, but is a Tensor"),
        (7, "but is a int"),
        ([], "train gives no batch: it is empty"),
        (DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=5, drop_last=True), "gives no batch"),
    ],
)
def test_what_is_no_source_of_batches_is_refused(source, sentence):
    with pytest.raises(UserError, match=sentence):
        split_given(source, "train", unpack)


def test_batches_of_every_form_are_parted():
    x, y, z = (torch.full((2,), float(value)) for value in range(3))
    assert unpack((x, y)) == unpack([x, y]) == (x, y)
    assert unpack((x, y, z)) == ((x, y), z)
    assert unpack(x) == unpack([x]) == (x, x)
    assert unpack({"a": x, "b": y, "labels": z}) == ({"a": x, "b": y}, z)
    assert with_targets({"a": x, "labels": z}) == ({"a": x, "labels": z}, z)
    assert with_targets((x, y)) == ((x, y), y)
    with pytest.raises(UserError, match="none of them is there; the keys are a, b"):
        unpack({"a": x, "b": y})
    with pytest.raises(UserError, match="several of them are there"):
        unpack({"label": x, "target": y})
    with pytest.raises(UserError, match="got str"):
        unpack("text")


@pytest.mark.parametrize(
    ("unpacked", "sentence"),
    [
        ((1, 2, 3), "should return .inputs, targets., but returned tuple of 3"),
        (("a", 0), "should hold a tensor, but"),
    ],
)
def test_a_wrong_unpack_is_refused(unpacked, sentence):
    split = split_given([(torch.zeros(2), torch.zeros(2))], "val", lambda batch: unpacked)
    with pytest.raises(UserError, match=f"val: .*{sentence}"):
        list(split.batches(1))


def test_a_digest_notices_other_examples():
    def made(value, size=6):
        return loader_split(
            TensorDataset(torch.full((size, 2), value), torch.zeros(size)), shuffle=False
        ).digest()

    assert made(0.0) == made(0.0) and len({made(0.0), made(1.0), made(0.0, 7)}) == 3
