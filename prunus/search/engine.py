"""A search from its first network to its winner: a strategy proposes, the journal remembers, the best are confirmed.

All strategies start with the uniform network, so none ends worse than it, and with networks that the user gives. A
score that selected a network is biased in its favour, so the finalists are scored again on data that was not used
for selection. Source: ours.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunus.errors import BudgetError, FileError, PrunusError, UserError
from prunus.files import shorten
from prunus.metrics import format_number
from prunus.progress import Step, silent
from prunus.search.evaluation import CHUNKS, Alone, Evaluator, Score, Workers, evaluate
from prunus.search.journal import Candidate, Journal, Proposal, fingerprint, pareto_front, rank, read
from prunus.search.proposals import Feasible, nearest
from prunus.search.space import Space, Widths
from prunus.search.strategies import Batch, Evolution, Strategy, propose
from prunus.selection import Budget, Price

MEASURED = 10  # at most this many times `top` networks are measured


@dataclass(frozen=True)
class Generation:
    """One batch of a search.

    Args:
        number: Its number.
        looked_at: How many networks were evaluated.
        dropped: How many of them were dropped early.
        mean: Their mean score.
        best: The best score so far of a network within the budget.
    """

    number: int
    looked_at: int
    dropped: int
    mean: float
    best: float | None


@dataclass(frozen=True)
class Result:
    """The result of a search.

    Args:
        winner: The best confirmed network, or `best` if none was confirmed.
        best: The best network by the scores of the search.
        confirmed: The finalists, best first, with their scores on other data, and with measured costs, if measured.
        uniform: The uniform network at the budget, with its score in the search.
        front: The Pareto front within the budget.
        path: The networks that greedy went through, from the whole network on.
        history: The batches.
        candidates: All evaluated networks, in order.
        before: The cost of the whole network.
        limit: The allowed cost.
        missing: How many networks of the strategy could not be found.
    """

    winner: Candidate
    best: Candidate
    confirmed: list[Candidate]
    uniform: Candidate | None
    front: list[Candidate]
    path: list[Candidate]
    history: list[Generation]
    candidates: list[Candidate]
    before: float
    limit: float
    missing: int

    def plain(self) -> dict[str, Any]:
        """All fields, as plain JSON."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Candidate):
        return value.plain()
    if isinstance(value, Generation):
        return asdict(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def search(
    space: Space,
    budget: Budget,
    score: Score,
    *,
    how: Strategy | None = None,
    seed: int = 0,
    seeds: Sequence[Widths] = (),
    strict_paper: bool = False,
    price: Price | None = None,
    chunks: Sequence[int] = CHUNKS,
    confirm: Score | None = None,
    top: int = 5,
    measured: Callable[[dict[str, int]], float] | None = None,
    journal: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: Workers | None = None,
    progress: Callable = silent,
) -> Result:
    """Search for the best network of a space within a budget.

    Source: ours; the evolution is MetaPruning's (Liu et al., ICCV 2019, arXiv:1903.10258).

    Args:
        space: The widths to choose from.
        budget: The budget.
        score: An `Evaluator`, or a function from widths to a number; higher is better.
        how: Evolution (None), Greedy or Random.
        seed: The seed of all samples.
        seeds: Widths of networks to start with, such as one that `select` found; they are mended to the budget.
        strict_paper: Sample again, not mend, networks above the budget, mutate uniformly, and start with random
            networks only.
        price: price(widths (C, A)) -> cost (C,); None: `selection.price_of`.
        chunks: Numbers of images after which a network may be dropped, see evaluation.py; () for no race.
        confirm: As `score`, on other data: the `top` best and the uniform network are scored on it again, and the
            best of them wins.
        top: How many finalists.
        measured: measured(widths) -> the measured cost, such as milliseconds; only networks within the limit can win.
        journal: A file that stores every evaluation; a search that was killed continues there.
        settings: Everything that scores depend on (a hash of the weights, which images, which calibration), plain
            JSON; a journal with other settings is refused.
        workers: The processes that evaluate; all of them must call this with the same arguments.
        progress: progress(label, total) -> a context that gives a step function.

    Returns:
        The result.

    Raises:
        BudgetError: The budget cannot be met.
        FileError: The journal cannot be read, or is damaged.
        UserError: The journal is of another search, or an argument is wrong.
    """
    how, workers = how or Evolution(), workers or Alone()
    feasible = Feasible(space, budget, price=price, strict=strict_paper)
    first = _first_proposals(feasible, seeds, seed)
    asked = {
        "given": settings or {},
        "budget": budget.limits,
        "strategy": {"name": type(how).__name__, **vars(how)},
        "options": {"seed": seed, "strict_paper": strict_paper, "chunks": list(chunks), "top": top},
        "images": [each.images if isinstance(each, Evaluator) else None for each in (score, confirm)],
        "seeds": [each.widths for each in first if each.origin == "seed"],
        "space": space.allowed,
        "shapes": fingerprint({name: list(shape) for name, shape in space.graph.shapes.items()}),
    }
    file = None if journal is None else Path(journal)
    known = workers.agree(lambda: _read_known(file, asked, score, confirm) if file else [])
    scorer = _Scorer(Journal(file if workers.leads else None, asked, known), workers)

    batches, history, seen = how.batches(feasible, first, seed), [], {}
    found, fits = None, []
    with progress("searching", how.evaluations(feasible)) as step:
        while True:
            try:
                batch = next(batches) if found is None else batches.send(found)
            except StopIteration as end:
                path = end.value
                break
            found = scorer("search", score, batch, step, chunks)
            for each in found:
                seen.setdefault(tuple(each.widths.values()), each)
            fits = rank(each for each in seen.values() if each.cost <= feasible.limit)
            history.append(_generation(len(history), found, fits))
    if strict_paper and feasible.missing:
        warnings.warn(
            f"strict_paper: {feasible.missing} networks are missing, because too few of {feasible.sampled} sampled "
            f"ones met the {budget}; without strict_paper they would be mended.",
            stacklevel=2,
        )
    if not fits:
        raise BudgetError(
            f"{budget}: none of {feasible.sampled} sampled networks met it; leave strict_paper off."
        )
    uniform = next((each for each in seen.values() if each.origin == "uniform"), None)
    last = _choose_finalists(fits, uniform, top, budget, feasible.limit, scorer, measured)
    if confirm is not None:
        with progress("confirming", len(last)) as step:
            last = rank(scorer("confirm", confirm, Batch(list(last)), step))
    return Result(
        winner=last[0],
        best=fits[0],
        confirmed=last if confirm is not None or measured is not None else [],
        uniform=uniform,
        front=pareto_front(fits),
        path=path,
        history=history,
        candidates=list(seen.values()),
        before=feasible.before,
        limit=feasible.limit,
        missing=feasible.missing,
    )


def _read_known(
    file: Path, asked: Mapping[str, Any], score: Score, confirm: Score | None
) -> list[tuple[str, Candidate]]:
    """Read a journal; FileError if a network was evaluated on other numbers of images than these scores take."""
    known = read(file, asked)
    for on, each in known:
        by = confirm if on == "confirm" else score
        images = by.images if isinstance(by, Evaluator) else 0
        fits = each.images == images if each.complete else 0 < each.images < images
        if not fits or (each.correct is None) != (images == 0):
            raise FileError(
                f"{file} is damaged: {shorten(each.widths)} should have been evaluated on {images} images, but has "
                f"answers for {0 if each.correct is None else each.images}. Remove the file to search again."
            )
    return known


def _first_proposals(feasible: Feasible, seeds: Sequence[Widths], seed: int) -> list[Proposal]:
    """Proposals of the uniform network and of the networks that the user gave."""
    if feasible.strict:
        if seeds:
            raise UserError(
                "strict_paper starts with random networks only; leave out seeds, or strict_paper."
            )
        return []
    uniform, rng = feasible.uniform(), np.random.default_rng(seed)
    own = [nearest(feasible, widths, rng) for widths in seeds]
    feasible.claim(uniform)
    return [
        *propose(feasible, [uniform], "uniform", 0),
        *propose(feasible, [genes for genes in own if feasible.claim(genes)], "seed", 0),
    ]


def _generation(number: int, found: list[Candidate], fits: list[Candidate]) -> Generation:
    scores = [each.score for each in found]
    return Generation(
        number=number,
        looked_at=len(found),
        dropped=sum(not each.complete for each in found),
        mean=sum(scores) / len(scores),
        best=fits[0].score if fits else None,
    )


@dataclass(frozen=True)
class _Scorer:
    """Evaluates each network once: known ones are read from the journal, new ones are written to it."""

    journal: Journal
    workers: Workers
    best: dict[str, float] = field(default_factory=dict)  # score so far, on "search" and on "confirm"

    def __call__(
        self, on: str, score: Score, batch: Batch, step: Step, chunks: Sequence[int] = ()
    ) -> list[Candidate]:
        new = [each for each in batch.proposals if self.journal.get(on, each.widths) is None]
        fresh = self.workers.map(partial(evaluate, score=score, rival=batch.rival, chunks=chunks), new)
        found = []
        for each in batch.proposals:
            known = self.journal.get(on, each.widths)
            if known is None:
                known = next(fresh)
                if known.widths != each.widths:
                    raise PrunusError(
                        f"processes that search together propose different networks: expected {each.widths}, got "
                        f"{known.widths}. Give all the same settings, and prices that agree to the last digit."
                    )
                self.journal.add(on, known)
            found.append(replace(known, cost=each.cost, origin=each.origin, generation=each.generation))
            self.best[on] = max(known.score, self.best.get(on, known.score))
            step(1, f"best {self.best[on]:.4g}")
        return found

    def cost(self, candidate: Candidate, measured: Callable[[dict[str, int]], float]) -> Candidate:
        """The candidate with its measured cost; one process measures, once."""
        known = self.journal.get("measured", candidate.widths)
        if known is None:
            cost = float(self.workers.agree(lambda: measured(dict(candidate.widths))))
            known = replace(candidate, cost=cost)
            self.journal.add("measured", known)
        return replace(candidate, cost=known.cost)


def _choose_finalists(
    fits: list[Candidate],
    uniform: Candidate | None,
    top: int,
    budget: Budget,
    limit: float,
    scorer: _Scorer,
    measured: Callable[[dict[str, int]], float] | None,
) -> list[Candidate]:
    """The best `top` networks and the uniform one; if costs are measured, only networks that meet the budget."""

    def costs(each: Candidate) -> Candidate:
        return scorer.cost(each, measured) if measured else each

    last: list[Candidate] = []
    tried: list[float] = []
    for each in [*fits[: MEASURED * top], *([uniform] if uniform else [])]:
        if len(last) < top or each is uniform:
            each = costs(each)
            tried.append(each.cost)
            if each.cost <= limit and each not in last:
                last.append(each)
    if not last:
        raise BudgetError(
            f"{budget}: none of the {len(tried)} best networks met it when measured; the cheapest took "
            f"{format_number(min(tried))}, allowed are {format_number(limit)}. Correct the price by measurements, "
            "or give a larger budget."
        )
    return last
