"""The proof that a small model computes the same as the original with the removed units at zero."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from prunus.errors import PruningError, UserError
from prunus.graph import (
    Graph,
    Keep,
    Places,
    Reference,
    SameDraws,
    WrittenError,
    one_at_a_time,
    operators,
    parametrised,
    plain_model,
    select_outputs,
    skeleton,
    take,
)
from prunus.inputs import call
from prunus.surgery.attempts import ATTEMPTS, HALF, QUICK_NEAR, Attempt, relative_error
from prunus.surgery.copies import checked_tensors, resize
from prunus.surgery.decoding import Decoding, Generating, decodings
from prunus.surgery.effective import effective_tensors
from prunus.surgery.filling import AtOnce, Cut, Filling, OneByOne
from prunus.surgery.sampling import Sampler, random_like
from prunus.surgery.structure import Structure
from prunus.surgery.vessel import Vessel

SMALL_MODEL = 1_000_000  # parameters
LARGE_MODEL = 100_000_000  # parameters; from here on each is drawn while it is read
FEW = 2  # units of a tensor's dimension
ROUNDS_OF_SMALL, ROUNDS_OF_FEW = 3, 8
MOST_TO_BLAME = 8  # proofs of a part of the cut, to find the axes at fault


@dataclass(frozen=True)
class Proof:
    """The result of a proof.

    Args:
        max_abs_error: Largest difference between small model and masked original, relative to the largest output.
        tolerance: The allowed error, which depends on the precision that was possible.
        seconds: Duration of the proof.
        dtype: The precision that decided.
        modes: The modes for which it speaks. Training is run too where code asks for the mode; where only torch's own
            layers do (batch norm, dropout), which treat each unit alone in both modes, a run in evaluation stands
            for it.
        calls: The calls with a cache that were made as well, if the model generates (see decoding.py).
    """

    max_abs_error: float
    tolerance: float
    seconds: float
    dtype: torch.dtype
    modes: tuple[str, ...]
    calls: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_abs_error <= self.tolerance


class NothingFinite(ArithmeticError):
    """No output of the masked original has a finite number, so there is nothing to compare."""


class NothingFound(NothingFinite):
    """The outputs of the masked original have no numbers at all: a detector that finds nothing."""


def prove(model: nn.Module, graph: Graph, keep: Keep, small: nn.Module) -> Proof:
    """Verify a small model, and name the axes at fault if it differs from the masked original.

    Args:
        model: The traced model.
        graph: Its graph.
        keep: axis -> indices that stayed.
        small: The shrunk model.

    Returns:
        The proof, which holds.

    Raises:
        FileError: `model` is not the model that was traced.
        PruningError: The two differ or cannot be compared.
    """
    try:
        proof = verify(model, graph, keep, small)
    except PruningError as error:
        raise PruningError(f"{error} {_blame(model, graph, keep)}") from error
    if not proof.holds:
        raise PruningError(
            f"the small model differs from the masked original by {proof.max_abs_error:.2g} "
            f"(allowed {proof.tolerance:.0e}); nothing was changed. {_blame(model, graph, keep)}"
        )
    return proof


def _blame(model: nn.Module, graph: Graph, keep: Keep) -> str:
    """A sentence that names the axes which fail alone, with an explanation of the first.

    Of many axes, the half that fails is halved until few enough are left to prove each alone.
    """

    def fails(*names: str) -> bool:
        try:
            return not verify(model, graph, {name: keep[name] for name in names}).holds
        except PruningError:
            return True

    suspects, proofs = list(keep), MOST_TO_BLAME
    while len(suspects) > max(1, proofs):
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        suspects = first if fails(*first) else second
        proofs -= 1
    failing = list(filter(fails, suspects))
    if not failing:
        return "No axis alone was found to fail, together they do; freeze some of them (freeze=[...])."
    names = ", ".join(failing[:3])
    return f"It fails on {names} alone; freeze it (freeze=[...]) and prune the rest.\n{graph.explain(failing[0])}"


@one_at_a_time()
@torch.inference_mode(False)  # see graph.trace
def verify(model: nn.Module, graph: Graph, keep: Keep, small: nn.Module | None = None) -> Proof:
    """Compare a small model with the original whose removed units are zero; see `prunus/surgery/apply.py`.

    Both are run in every mode that had to be traced (`graph.traced`), in float32. An error above what rounding makes
    is settled in float64, where that is possible.

    Args:
        model: The traced model; it is not changed.
        graph: Its graph.
        keep: axis -> indices that stay.
        small: The shrunk model, also checked to hold exactly the kept weights of `model`; None verifies only that
            shrinking `model` to `keep` is correct.

    Returns:
        The proof, which may not hold.

    Raises:
        FileError: `model` is not the model that was traced.
        PruningError: `small` holds other weights, one of the two models does not run, or they draw other random
            numbers.
        UserError: `keep` does not fit the graph, or `model` is on the meta device.
    """
    start = time.perf_counter()
    model, small = plain_model(model), None if small is None else plain_model(small)
    keep = graph.check_keep(keep)
    tensors = checked_tensors(model, graph)
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise UserError(
            f"nothing can be proved of a model without weights: {empty[0]} is on the meta device. Prove it with a "
            'model of the same class that has weights, whichever, or shrink with verify="off".'
        )
    pair = Pair(model, small, graph, Places(keep), tensors)
    if small is not None:
        pair.check_weights()
    is_half = not HALF.isdisjoint(tensor.dtype for tensor in tensors.values())
    cause: Exception | None = None
    failed: set[torch.dtype] = set()
    for attempt in ATTEMPTS:
        found_nothing = isinstance(cause, NothingFound)  # no precision changes that, but other weights may
        if (found_nothing and not attempt.near) or (attempt is QUICK_NEAR and not found_nothing):
            continue
        if attempt.dtype in failed or (failed and is_half and attempt.dtype not in HALF):
            continue  # a forward pass that fixes a lower precision fails in every higher one
        try:
            error = pair.error(attempt)
        except PruningError:
            raise
        except NothingFinite as failure:  # perhaps only on these weights
            cause = failure
            continue
        except Exception as failure:  # the device lacks this precision, or the forward pass fixes a dtype
            cause = failure
            failed.add(attempt.dtype)
            continue
        if error <= attempt.tolerance or not attempt.quick:
            seconds = time.perf_counter() - start
            calls = tuple(each.name for each in pair.decodings)
            return Proof(error, attempt.tolerance, seconds, attempt.dtype, tuple(graph.modes), calls)
    raise PruningError(f"the small model and the original cannot be compared: {cause}") from cause


Vessels = tuple[Vessel, Vessel]  # of the original, and of the small model


class _WroteError(Exception):
    """A forward pass wrote to parameters that both models hold."""


class Pair:
    """The two models that a proof compares."""

    def __init__(
        self,
        model: nn.Module,
        small: nn.Module | None,
        graph: Graph,
        places: Places,
        tensors: dict[str, torch.Tensor],
    ):
        self.model, self.graph, self.places, self.tensors = model, graph, places, tensors
        lost = graph.blocks.lost(places.keep)
        self.stays = {
            n: None if n in lost else places.stay(graph.layouts[n], t.device) for n, t in tensors.items()
        }
        self.cut = Cut(graph, places, self.stays)
        self.small = resize(model, graph, places.keep, tensors) if small is None else small
        structure = Structure.of(graph, places.keep, self.small)
        self.names = structure.originals((*graph.layouts, *graph.state))
        sizes = {name: self.cut.shape(name, tensor) for name, tensor in tensors.items()}
        self.sampler = Sampler(graph, tensors, sizes)
        self.on_own: set[str] = set()  # modes whose random inputs make the original fail
        self.written: set[str] = set()  # parameters that the forward pass writes to, known once it has
        self.rounds = self._rounds(sizes)
        self.one_by_one = sum(map(torch.Tensor.numel, tensors.values())) >= LARGE_MODEL
        self.decodings = decodings(model, graph.example) if "eval" in graph.traced else []

    def _rounds(self, sizes: dict[str, list[int]]) -> int:
        """How many networks to compare: several of small ones, in which chance may hide an error.

        The few units that stay may all be zero for one input, and a norm over one or two leaves little but signs.
        """
        if sum(map(torch.Tensor.numel, self.tensors.values())) >= SMALL_MODEL:
            return 1
        cut = (
            pair for name, size in sizes.items() for pair in zip(self.tensors[name].shape, size, strict=True)
        )
        if any(left <= FEW < whole for whole, left in cut):
            return ROUNDS_OF_FEW
        return ROUNDS_OF_SMALL if any(op.is_a(operators.DEAD_END) for op in self.graph.ops) else 1

    def check_weights(self) -> None:
        """Check that the small model holds the kept weights, bit by bit. Raises PruningError otherwise."""
        held = {self.names.get(name, name): held for name, held in effective_tensors(self.small).items()}
        for name, tensor in self.tensors.items():  # one at a time, because a large model's are large
            if not self.cut.has(name):
                continue
            expected = self.cut.part(name, tensor)
            computed = not isinstance(self.tensors[name], nn.Parameter) and name in self.graph.parameters
            same = parametrised.same_value if computed else torch.equal
            if (
                name not in held
                or held[name].shape != expected.shape
                or not same(held[name].to(expected.device), expected)
            ):
                raise PruningError(
                    f"{name} of the small model does not hold the kept weights of the original; verify it before it "
                    "is trained, with the keep it was made with."
                )

    def error(self, attempt: Attempt) -> float:
        """The largest error over rounds and modes; a quick attempt ends once it exceeds its tolerance."""
        worst = 0.0
        skipped = self.graph.blocks.skipped(self.places.keep)
        whole, small = Vessel(self.model, skipped=skipped), Vessel(self.small, self.names)
        seeds = list(range(self.rounds))
        while seeds:
            seed = seeds[0]
            draw = self.sampler.draws(attempt.dtype, seed, attempt.near)
            filling = (
                OneByOne(self.cut, draw, self.tensors, attempt.dtype)
                if self.one_by_one
                else AtOnce(self.cut, draw)
            )
            try:
                for mode in self.graph.traced:
                    worst = max(worst, self._in_mode(mode, (whole, small), filling, attempt, seed))
                    if mode == "eval" and seed == 0:
                        worst = max(worst, self._generating((whole, small), filling, attempt))
                    if attempt.quick and worst > attempt.tolerance:
                        return worst
            except (_WroteError, WrittenError):
                # The forward pass writes to parameters: try again with a tensor of its own for each model.
                self.one_by_one = False
                continue
            seeds.pop(0)
        return worst

    def _in_mode(self, mode: str, pair: Vessels, filling: Filling, attempt: Attempt, seed: int) -> float:
        """The difference in one mode, on random inputs; on the example's own numbers if the original fails on those.

        Targets for a loss can make it fail: random boxes may have no size, random chances exceed one.
        """

        def difference(own: bool) -> float:
            inputs = self._filled(pair, filling, mode, self.graph.modes[mode], attempt, seed, own)
            return self._difference(pair, filling, inputs, attempt)

        if mode not in self.on_own:
            try:
                return difference(own=False)
            except (PruningError, NothingFinite, _WroteError, WrittenError):
                raise
            except Exception:
                pass  # the next line raises it again unless the inputs were at fault
        found = difference(own=True)
        self.on_own.add(mode)
        return found

    def _filled(
        self,
        pair: Vessels,
        filling: Filling,
        mode: str,
        like: Any,
        attempt: Attempt,
        seed: int,
        own: bool = False,
    ) -> Any:
        """Fill both vessels, and return inputs like some, random or their own."""
        device = next(iter(self.tensors.values())).device
        generator = torch.Generator().manual_seed(seed)
        for vessel, tensors in zip(pair, (filling.whole, filling.small), strict=True):
            vessel.fill(tensors, mode, copy=bool(self.written))
        return tree_map_only(
            torch.Tensor, lambda t: random_like(t, attempt.dtype, device, generator, own), like
        )

    def _generating(self, pair: Vessels, filling: Filling, attempt: Attempt) -> float:
        """The difference in calls with a cache; those that the original does not take are dropped."""
        worst = 0.0
        for each in list(self.decodings):
            try:
                inputs = self._filled(pair, filling, "eval", each.inputs, attempt, 0)
                worst = max(worst, self._difference(pair, filling, inputs, attempt, each))
            except (PruningError, NothingFinite, _WroteError, WrittenError):
                raise
            except Exception:  # the original takes no such call
                self.decodings.remove(each)
        return worst

    def _difference(
        self,
        pair: Vessels,
        filling: Filling,
        example: Any,
        attempt: Attempt,
        decoding: Decoding | None = None,
    ) -> float:
        """Largest difference of outputs, and of tensors that may have been written to, each over its largest value.

        Raises _WroteError if the forward pass wrote to parameters that the two models may share.
        """
        device = next(iter(self.tensors.values())).device
        whole, small = pair
        whole_tensors = whole.tensors()
        # A parameter that is written to may be computed from weights, which must not be scaled in between: the original
        # would read them unscaled, and the small model, which runs later, scaled.
        levels = None if self.written else filling.levels(whole_tensors, small.tensors())
        models, chosen = [whole.model, small.model], self.graph.chosen
        if decoding is not None:  # the weights have been scaled in the runs before
            levels, chosen = None, None
            models = [Generating(model, decoding, self.graph.chosen) for model in models]
        reference = Reference(self.places, thorough=not attempt.quick, levels=levels)
        with skeleton.seeded(device):
            expected = select_outputs(
                reference.run(
                    models[0],
                    whole_tensors,
                    example,
                    self.graph.layouts | self.graph.state,
                    filling.around_whole(reference),
                ),
                chosen,
            )
        if not reference.written <= self.written:
            self.written |= reference.written
            raise _WroteError
        own = tree_map_only(torch.Tensor, torch.clone, example)  # the forward pass may write to it
        with (
            skeleton.seeded(device),
            skeleton.quiet_forward(),
            SameDraws(reference.draws, self.places) as draws,
            filling.around_small() or nullcontext(),
        ):
            try:
                got = select_outputs(call(models[1], own), chosen)
            except (PruningError, WrittenError):
                raise
            except Exception as error:  # the original ran
                raise PruningError(f"the small model does not run: {error}") from error
        draws.finish()
        if len(got) != len(expected):
            raise PruningError(
                f"the small model returns {len(got)} tensors, where the original returns {len(expected)}."
            )
        if not any(tensor.numel() for tensor in expected):
            raise NothingFound("the original returned tensors without a number, so nothing is proved.")
        if not any(tensor.isfinite().any() for tensor in expected):
            raise NothingFinite("no output of the original has a finite number, so nothing is proved.")
        if attempt.quick and not all(tensor.isfinite().all() for tensor in expected):
            return float("inf")  # perhaps only in this precision
        mine = small.tensors()
        for name, tensor in whole.tensors().items():
            stay = self.stays.get(name)
            if stay is not None and (name not in self.graph.parameters or name in self.written):
                got.append(mine[name])
                expected.append(take(tensor, stay))
        return max(map(relative_error, got, expected))
