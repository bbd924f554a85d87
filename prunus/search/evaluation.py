"""How networks get their scores: raced against a rival over the same images, by one process or by many.

What a network's score comes from is the caller's: how it gets its weights, and what it is tried on. Images come in
fixed chunks, and a network that has certainly fallen behind sees no more of them. Its rival stands fixed before the
first network of a batch is looked at, so what becomes of one does not depend on when the others are ready, nor on how
many processes there are. Source: ours; the test is McNemar's, on the images that one of the two has right.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist

from prunus.errors import PrunusError, UserError
from prunus.search.journal import Candidate, Proposal
from prunus.search.space import Widths

CHUNKS = (1_000, 4_000, 10_000)  # images seen when it is asked whether to go on; at last all are
Z = 2.6  # standard deviations: of networks as good as their rival one in 200 is dropped at each look

Task, Answer = TypeVar("Task"), TypeVar("Answer")


@runtime_checkable
class Evaluator(Protocol):
    """Tries networks on images. images: how many there are.

    Asked for one network at a time, its images in rising order, each at most once: so it may keep the network it made
    last. The answer must depend on nothing but the widths and the images.
    """

    images: int

    def score(self, widths: Widths, images_from: int, images_to: int) -> Any:
        """Of each of these images whether the network has it right: bool (images_to - images_from,)."""


Score = (
    Evaluator | Callable[[dict[str, int]], float]
)  # a function gives one number for a network, higher being better


def examined(
    proposal: Proposal, score: Score, rival: Candidate | None = None, chunks: Sequence[int] = ()
) -> Candidate:
    """The proposal with its score, the share of images it has right, or the number that a function gives.

    rival: dropped as soon as it is certain to be worse than this one. Raises UserError for a score that is none.
    """
    values = {name: getattr(proposal, name) for name in ("widths", "cost", "origin", "generation")}
    if not isinstance(score, Evaluator):
        number = float(score(dict(proposal.widths)))
        if not math.isfinite(number):
            raise UserError(
                f"the score of {proposal.widths} is {number}; expected a number, higher being better."
            )
        return Candidate(**values, score=number)
    correct = np.zeros(0, dtype=bool)
    for end in [*sorted(each for each in chunks if each < score.images), score.images]:
        part = torch.as_tensor(score.score(dict(proposal.widths), len(correct), end)).cpu().numpy()
        if part.dtype != bool or part.shape != (end - len(correct),):
            raise UserError(
                f"an evaluator should say of each image whether it was right: bool ({end - len(correct)},); "
                f"got {part.dtype} {part.shape}."
            )
        correct = np.concatenate([correct, part])
        if rival is not None and rival.correct is not None and behind(correct, rival.correct):
            break
    is_whole = len(correct) == score.images
    return Candidate(
        **values, score=correct.mean().item(), images=len(correct), complete=is_whole, correct=correct
    )


def behind(correct: np.ndarray, rival: np.ndarray) -> bool:
    """Whether a network is worse than its rival beyond chance, by the images both have seen: bool (n,), (n or more,).

    Only images that exactly one of the two has right say anything: their share d gives the gap a deviation of
    sqrt(d / n), far less than two scores on images of their own would have.
    """
    rival = rival[: len(correct)]
    gap = rival.mean() - correct.mean()
    return bool(gap > Z * math.sqrt((rival != correct).mean() / len(correct)))


# --------------------------------------------------------------------------------- who evaluates
class Workers(Protocol):
    """Who does the work. leads: whether this process writes what is found; of all that search together one does."""

    leads: bool

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        """The answers in the order of the tasks, the same in all processes, each as soon as it may be had."""

    def agree(self, action: Callable[[], Answer]) -> Answer:
        """What the leading process gets from `action`, in all processes; or what it raises."""


class Alone:
    """This process does everything."""

    leads = True

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        """One after the other."""
        return map(work, tasks)

    def agree(self, action: Callable[[], Answer]) -> Answer:
        """What it gives."""
        return action()


class Ranks:
    """The processes of torch.distributed, which must be initialised, and all of which must make one.

    All run the same search; of each round of tasks, one for each process, everyone does its own and tells the others.
    If one dies the others fail, and what the rounds before found is in the journal. An error in one is raised in all.
    """

    def __init__(self):
        self.group = dist.new_group(backend="gloo")  # whatever else they speak to their devices
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        """In rounds."""
        for start in range(0, len(tasks), self.count):
            mine = tasks[start + self.rank : start + self.rank + 1]
            told: list[Any] = [None] * self.count
            own = self._tried(lambda mine=mine: [work(task) for task in mine])
            dist.all_gather_object(told, own, group=self.group)
            told[self.rank] = own  # with the cause of an error, which does not travel
            for answers in [_heard(each) for each in told]:  # all of them before one is used
                yield from answers

    def agree(self, action: Callable[[], Answer]) -> Answer:
        """Told by the first process."""
        own = self._tried(action) if self.leads else None
        told = [own]
        dist.broadcast_object_list(told, src=0, group=self.group)
        return _heard(own or told[0])

    def _tried(self, action: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
        try:
            return action(), None
        except PrunusError as error:
            return None, error
        except Exception as error:  # which might not survive the way to the others
            told = PrunusError(f"process {self.rank} failed: {type(error).__name__}: {error}")
            told.__cause__ = error
            return None, told


def _heard(told: tuple[Answer, Exception | None]) -> Answer:
    answer, error = told
    if error is not None:
        raise copy(
            error
        ) from error  # the one itself would keep the frames that hold it, and the group, alive
    return answer
