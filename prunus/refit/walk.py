"""Forward passes that stop at each product, so that many of them go on side by side.

Each pass runs in a thread of its own, of which only one runs at a time. A pass that has stopped holds the tensors that
it still needs, and no others; so passes over several batches hold together what one pass over all of them would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.errors import UserError, one_line
from prunus.graph import OWN_NAMES, named_tensors, operators
from prunus.inputs import call, in_words
from prunus.refit.products import Product


@dataclass
class Stop:
    """An operator that a pass is about to run.

    Args:
        name: The parameter of a product; for a batch norm the buffer of its running mean.
        product: The product; None for a batch norm.
        norm: For a batch norm its input, running mean and running variance.
        run: Computes the result.
    """

    name: str
    product: Product | None
    norm: tuple[Tensor, Tensor, Tensor] | None
    run: Callable[[], Any]
    out: Any = None

    @property
    def x(self) -> Tensor:
        """The input."""
        if self.product is not None:
            return self.product.x
        assert self.norm is not None
        return self.norm[0]


class _Ended(BaseException):
    """Ends the thread of a pass that is not needed any more."""


class Walk:
    """One forward pass that stops at products with parameters and at batch norms that keep statistics.

    It is a context manager, which ends the pass wherever it is.

    Args:
        model: A bare model (see `graph.make_skeleton`).
        inputs: The inputs of one batch, as the model takes them; the pass gets a copy, to which it may write.
        names: The names by which its tensors are known, where they differ from those in the model (see
            surgery.Structure).
        without: The names at which it does not stop.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        names: Mapping[str, str] = OWN_NAMES,
        without: Collection[str] = (),
    ):
        self.model, self.inputs = model, tree_map_only(Tensor, torch.clone, inputs)
        named = {names.get(name, name): t for name, t in named_tensors(model).items() if t.numel()}
        named = {name: tensor for name, tensor in named.items() if name not in without}
        self._weights = {address(t): name for name, t in named.items() if isinstance(t, nn.Parameter)}
        self._kept = {address(t): name for name, t in named.items() if not isinstance(t, nn.Parameter)}
        self._here, self._on = threading.Semaphore(0), threading.Semaphore(0)
        self._stop: Stop | None = None
        self._failure: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._pass, daemon=True)

    def next(self) -> Stop | None:
        """Go on to the next stop.

        Returns:
            The stop; None at the end of the pass.

        Raises:
            UserError: The model cannot be called with the inputs.
        """
        self._stop = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._on.release()
        self._here.acquire()
        if self._failure is not None:
            raise self._failure
        return self._stop

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *raised: object) -> None:
        self._ending = True
        if self._thread.ident is not None and self._thread.is_alive():
            self._on.release()
            self._thread.join()

    def _pass(self) -> None:
        try:
            with torch.no_grad(), _Watched(self._run):
                call(self.model, self.inputs)
        except _Ended:
            pass
        except UserError as failure:
            self._failure = failure
        except Exception as failure:  # whatever a user's own model raises
            self._failure = self._refused(failure)
        except BaseException as failure:
            self._failure = failure
        self._here.release()

    def _refused(self, failure: Exception) -> UserError:
        """The error for a batch on which the model failed."""
        error = UserError(
            f"the model cannot be called with the batch {in_words(self.inputs)}: {one_line(failure)}. Give inputs as "
            "the model takes them, without labels: a tensor, a tuple by position, or a dict by keyword."
        )
        error.__cause__ = failure
        return error

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, after a stop if it is one to stop at."""
        stop = self._stop_at(func, args, kwargs)
        if stop is None:
            return func(*args, **kwargs)
        self._stop = stop
        self._here.release()
        self._on.acquire()
        if self._ending:
            raise _Ended
        return stop.run() if stop.out is None else stop.out

    def _stop_at(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stop | None:
        def run() -> Any:
            try:
                return func(*args, **kwargs)
            except Exception as failure:  # such as one of sizes that do not fit
                raise self._refused(failure) from failure

        if operators.is_a(func, operators.BATCH_NORM):
            x, mean, variance = (
                operators.argument(func, name, args, kwargs, default=None)
                for name in ("input", "running_mean", "running_var")
            )
            if isinstance(mean, Tensor) and address(mean) in self._kept:
                return Stop(self._kept[address(mean)], None, (x, mean, variance), run)
        elif operators.is_a(func, operators.WEIGHTED):
            a, b = operators.operands(func, args)
            first = address(a) in self._weights
            if first != (address(b) in self._weights):
                x, weight = (b, a) if first else (a, b)
                product = Product(func, args, kwargs, x, weight, first)
                return Stop(self._weights[address(weight)], product, None, run)
        return None


class _Watched(TorchDispatchMode):
    """Lets a function run each operator."""

    def __init__(self, run: Callable[..., Any]):
        super().__init__()
        self.run = run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.run(func, args, kwargs or {})


def address(tensor: Tensor) -> int:
    """The address of a tensor's memory, which a parameter and its views share."""
    return tensor.untyped_storage().data_ptr()
