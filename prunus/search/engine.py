"""A search from its first network to its winner: a strategy proposes, scores are remembered, the best are confirmed.

All strategies look at the uniform network first, so none ends worse than it, and at networks of the user's own. Scores
that chose a network flatter it; so the last few are scored once more on data that chose nothing. Source: ours.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunus.errors import BudgetError, PrunusError, UserError
from prunus.metrics import format_number
from prunus.progress import Step, silent
from prunus.search.evaluation import CHUNKS, Alone, Evaluator, Score, Workers, examined
from prunus.search.journal import Candidate, Journal, Proposal, fingerprint, front, ranked, read
from prunus.search.proposals import Room, nearest
from prunus.search.space import Space, Widths
from prunus.search.strategies import Batch, Evolution, Strategy, proposals
from prunus.selection import Budget, Price

MEASURED = 10  # times as many as should be confirmed are measured at the most


@dataclass(frozen=True)
class Generation:
    """One batch: how many networks, how many of them fell behind, their mean score, the best so far that fits."""

    number: int
    looked_at: int
    dropped: int
    mean: float
    best: float | None


@dataclass(frozen=True)
class Result:
    """What a search found.

    winner: the best as confirmed, or as searched if nothing was to be confirmed. best: by the search's own scores.
    confirmed: the last few, best first, with scores on the data kept for it, and costs as measured if they were.
    uniform: the uniform network at the budget, as searched. front: the Pareto front within the budget. path: what
    greedy went through, from the whole network on, budget after budget. candidates: all that were looked at, in order.
    before, limit: costs. missing: proposals for which nothing new could be found.
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
        """All of it as JSON."""
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
    """The best network of a space within a budget.

    score: an `Evaluator`, or a function from widths to a number, higher being better. how: Evolution (if None), Greedy
    or Random. seeds: networks of the user's own to begin with, such as one that `select` found; they are mended to the
    budget. strict_paper: what is drawn over the budget is drawn again, not mended, all mutation is uniform, and no
    network is given to begin with. price: what widths cost, if not as `selection.price_of` has it. chunks: of images,
    see evaluation.py; () for no race.

    confirm: as `score`, on other data: the `top` best and the uniform network are scored on it once more, and the best
    of those wins. measured: what a network really costs, for milliseconds: only those within the limit can win.

    journal: a file, in which every evaluation is kept; a search that was killed goes on where it was. settings: all
    that scores depend on (a hash of the weights, which images, what calibration), plain JSON: another search in that
    file is refused. workers: who evaluates; all processes that search together must call this alike.

    Raises BudgetError if the budget cannot be met, UserError for a journal of another search or anything else wrong
    with what was given.
    """
    how, workers = how or Evolution(), workers or Alone()
    room = Room(space, budget, price=price, strict=strict_paper)
    first = _first(room, seeds, seed)
    asked = {
        "given": settings or {},
        "budget": {budget.name: budget.value},
        "strategy": {"name": type(how).__name__, **asdict(how)},
        "options": {"seed": seed, "strict_paper": strict_paper, "chunks": list(chunks), "top": top},
        "images": [each.images if isinstance(each, Evaluator) else None for each in (score, confirm)],
        "seeds": [each.widths for each in first if each.origin == "seed"],
        "space": space.allowed,
        "shapes": fingerprint({name: list(shape) for name, shape in space.graph.shapes.items()}),
    }
    file = None if journal is None else Path(journal)
    lines = workers.agree(lambda: read(file, asked) if file else [])
    judge = _Judge(Journal(file if workers.leads else None, asked, lines), workers)

    batches, history, seen = how.batches(room, first, seed), [], {}
    found, fits = None, []
    with progress("searching", how.evaluations(room)) as step:
        while True:
            try:
                batch = batches.send(found)
            except StopIteration as end:
                path = end.value
                break
            found = judge("search", score, batch, step, chunks)
            for each in found:
                seen.setdefault(tuple(each.widths.values()), each)
            fits = ranked(each for each in seen.values() if each.cost <= room.limit)
            history.append(_generation(len(history), found, fits))
    if strict_paper and room.missing:
        warnings.warn(
            f"strict_paper: {room.missing} networks are missing, for of {room.drawn} that were drawn too few met the "
            f"{budget}; they are mended if strict_paper is off.",
            stacklevel=2,
        )
    if not fits:
        raise BudgetError(
            f"{budget}: none of {room.drawn} networks that were drawn met it; leave strict_paper off."
        )
    uniform = next((each for each in seen.values() if each.origin == "uniform"), None)
    last = _holding(fits, uniform, top, budget, room.limit, judge, measured)
    if confirm is not None:
        with progress("confirming", len(last)) as step:
            last = ranked(judge("confirm", confirm, Batch(last), step))
    return Result(
        winner=last[0],
        best=fits[0],
        confirmed=last if confirm is not None or measured is not None else [],
        uniform=uniform,
        front=front(fits),
        path=path,
        history=history,
        candidates=list(seen.values()),
        before=room.before,
        limit=room.limit,
        missing=room.missing,
    )


def _first(room: Room, seeds: Sequence[Widths], seed: int) -> list[Proposal]:
    """The uniform network, and the user's own."""
    if room.strict:
        if seeds:
            raise UserError(
                "strict_paper begins with random networks alone; leave out seeds, or strict_paper."
            )
        return []
    uniform, rng = room.uniform(), np.random.default_rng(seed)
    own = [nearest(room, widths, rng) for widths in seeds]
    room.claim(uniform)
    return [
        *proposals(room, [uniform], "uniform", 0),
        *proposals(room, [genes for genes in own if room.claim(genes)], "seed", 0),
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
class _Judge:
    """Scores networks, each once: what the journal knows is not asked again, what is new goes into it."""

    journal: Journal
    workers: Workers
    best: dict[str, float] = field(default_factory=dict)  # score so far, on "search" and on "confirm"

    def __call__(
        self, on: str, score: Score, batch: Batch, step: Step, chunks: Sequence[int] = ()
    ) -> list[Candidate]:
        new = [each for each in batch.proposals if self.journal.get(on, each.widths) is None]
        fresh = self.workers.map(partial(examined, score=score, rival=batch.rival, chunks=chunks), new)
        found = []
        for each in batch.proposals:
            known = self.journal.get(on, each.widths)
            if known is None:
                known = next(fresh)
                if known.widths != each.widths:
                    raise PrunusError(
                        "processes that search together propose different networks: see that all are given the same "
                        "settings, and prices that agree to the last digit."
                    )
                self.journal.add(on, known)
            found.append(replace(known, cost=each.cost, origin=each.origin, generation=each.generation))
            self.best[on] = max(known.score, self.best.get(on, known.score))
            step(1, f"best {self.best[on]:.4g}")
        return found

    def cost(self, candidate: Candidate, measured: Callable[[dict[str, int]], float]) -> Candidate:
        """The candidate with its cost as measured, once, by one process."""
        known = self.journal.get("measured", candidate.widths)
        if known is None:
            cost = float(self.workers.agree(lambda: measured(dict(candidate.widths))))
            known = replace(candidate, cost=cost)
            self.journal.add("measured", known)
        return replace(candidate, cost=known.cost)


def _holding(
    fits: list[Candidate],
    uniform: Candidate | None,
    top: int,
    budget: Budget,
    limit: float,
    judge: _Judge,
    measured: Callable[[dict[str, int]], float] | None,
) -> list[Candidate]:
    """The best `top`, and the uniform network; of those that hold the budget as measured, if they are."""

    def costs(each: Candidate) -> Candidate:
        return judge.cost(each, measured) if measured else each

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
            f"{budget}: none of the {len(tried)} best networks held it as measured, the cheapest came to "
            f"{format_number(min(tried))}, {format_number(limit)} are allowed. Correct the price by "
            "what was measured, or give a larger budget."
        )
    return last
