"""Evaluation: networks race against a rival over the same images, in one process or several.

The caller decides where weights come from and on which data networks are evaluated. Images come in fixed chunks; a
network that is certain to be worse than its rival is dropped after a chunk. The rival is fixed before the first
network of a batch is evaluated, so results depend neither on the order in which networks are ready nor on the number
of processes. Source: ours; the test is McNemar's, on the images that exactly one of the two classifies correctly.
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

CHUNKS = (
    1_000,
    4_000,
    10_000,
)  # numbers of images after which the race is checked; the last chunk is the rest
Z = 2.6  # standard deviations: each check drops one in 200 of the networks that are as good as their rival

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@runtime_checkable
class Evaluator(Protocol):
    """The contract of an object that evaluates networks image by image, so that they can race.

    It is asked about one network at a time, with images in rising order and each at most once, so it may keep the
    last network. Answers must depend only on the widths and the images. `images` is the number of images.
    """

    images: int

    def score(self, widths: Widths, images_from: int, images_to: int) -> Any:
        """Whether the network's answer for each image is right.

        Args:
            widths: axis -> units.
            images_from: The first image.
            images_to: One past the last image.

        Returns:
            bool (images_to - images_from,).
        """


Score = (
    Evaluator | Callable[[dict[str, int]], float]
)  # a function returns one number for a network; higher is better


def evaluate(
    proposal: Proposal, score: Score, rival: Candidate | None = None, chunks: Sequence[int] = ()
) -> Candidate:
    """Evaluate a network: its score is the share of images it classifies correctly, or the number of a function.

    Args:
        proposal: The network.
        score: An evaluator, or a function from widths to a number.
        rival: The network is dropped as soon as it is certain to be worse than this one.
        chunks: Numbers of images after which this is checked.

    Returns:
        The candidate.

    Raises:
        UserError: The function returns NaN or infinity, or the evaluator something else than a bool per image.
    """
    values = {name: getattr(proposal, name) for name in ("widths", "cost", "origin", "generation")}
    if not isinstance(score, Evaluator):
        number = float(score(dict(proposal.widths)))
        if not math.isfinite(number):
            raise UserError(
                f"the score of {proposal.widths} is {number}; expected a finite number, higher is better. Check the "
                "score function."
            )
        return Candidate(**values, score=number)
    correct = np.zeros(0, dtype=bool)
    for end in [*sorted(each for each in chunks if each < score.images), score.images]:
        part = torch.as_tensor(score.score(dict(proposal.widths), len(correct), end)).cpu().numpy()
        if part.dtype != bool or part.shape != (end - len(correct),):
            raise UserError(
                f"an evaluator should return whether each image was right: bool ({end - len(correct)},), but it "
                f"returned {part.dtype} {part.shape}."
            )
        correct = np.concatenate([correct, part])
        if rival is not None and rival.correct is not None and is_behind(correct, rival.correct):
            break
    is_whole = len(correct) == score.images
    return Candidate(
        **values, score=correct.mean().item(), images=len(correct), complete=is_whole, correct=correct
    )


def is_behind(correct: np.ndarray, rival: np.ndarray) -> bool:
    """Whether a network is worse than its rival beyond chance, by the images both have seen: bool (n,), (n or more,).

    Only images that exactly one of the two classifies correctly carry information: with their share d, the gap has a
    standard deviation of sqrt(d / n), far less than two scores on different images would have.
    """
    rival = rival[: len(correct)]
    gap = rival.mean() - correct.mean()
    return bool(gap > Z * math.sqrt((rival != correct).mean() / len(correct)))


# --------------------------------------------------------------------------------- who evaluates
class Workers(Protocol):
    """The contract of the processes that search together. Exactly one of them `leads`: it writes the results."""

    leads: bool

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        """Yield the answers in the order of the tasks, the same in all processes, each as soon as it is known."""
        ...

    def agree(self, action: Callable[[], Answer]) -> Answer:
        """Return in all processes what `action` returns in the leading one; or raise what it raises there."""
        ...


class Alone:
    """A single process, which does all the work."""

    leads = True

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        """Work on one task after the other."""
        return map(work, tasks)

    def agree(self, action: Callable[[], Answer]) -> Answer:
        """Return what `action` returns."""
        return action()


class Ranks:
    """The processes of torch.distributed, which must be initialised; every process must create one.

    All run the same search. In each round every process works on one task and sends its answer to the others. An
    error in one process is raised in all. If a process dies the others fail; the journal has all earlier rounds.
    """

    def __init__(self):
        self.group: Any = dist.new_group(
            backend="gloo"
        )  # for plain objects, whatever backend the devices use
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Answer]:
        """Work on the tasks in rounds, one task a process."""
        for start in range(0, len(tasks), self.count):
            mine = tasks[start + self.rank : start + self.rank + 1]
            outcomes: list[Any] = [None] * self.count
            own = self._try(lambda mine=mine: [work(task) for task in mine])
            dist.all_gather_object(outcomes, own, group=self.group)
            outcomes[self.rank] = own  # with the cause of an error, which is not sent
            for answers in [_unwrap(each) for each in outcomes]:  # raise any error before an answer is used
                yield from answers

    def agree(self, action: Callable[[], Answer]) -> Answer:
        """Return what the first process gets from `action`."""
        own = self._try(action) if self.leads else None
        outcomes = [own]
        dist.broadcast_object_list(outcomes, src=0, group=self.group)
        outcome = own or outcomes[0]
        assert outcome is not None  # the first process has sent its own
        return _unwrap(outcome)

    def _try(self, action: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
        try:
            return action(), None
        except PrunusError as error:
            return None, error
        except Exception as error:  # it might not survive pickling
            failure = PrunusError(f"process {self.rank} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            return None, failure


def _unwrap(outcome: tuple[Any, Exception | None]) -> Any:
    answer, error = outcome
    if error is not None:
        raise copy(
            error
        ) from error  # a copy, because `error` would keep frames, and with them the group, alive
    return answer
