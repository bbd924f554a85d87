"""What the fitting of a small model did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """One product that was fitted again.

    Args:
        before: The share of the original's output that the weights left unexplained as they were cut.
        after: The share that they leave now.
        equations: The number of outputs for which they were fitted: images times places.
        columns: The number of weights of each output.
    """

    before: float
    after: float
    equations: int
    columns: int


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fitting.

    Args:
        layers: The products that were fitted, by parameter; a parameter that several products read in parts comes with
            the number of the part.
        left: The parameters that were left as they were cut, with the reason.
        examples: The number of examples.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    examples: int = 0

    def unexplained(self) -> tuple[float, float]:
        """The share of a layer's output that is left unexplained, the mean over layers: as they were cut, and now."""
        count = max(1, len(self.layers))
        before, after = (
            [getattr(layer, when) for layer in self.layers.values()] for when in ("before", "after")
        )
        return sum(before) / count, sum(after) / count

    def summary(self) -> str:
        """Say in a sentence or two what was fitted, and whether there were enough examples."""
        text = f"fitted {len(self.layers)} layers again to {self.examples} examples"
        few = {name: layer for name, layer in self.layers.items() if layer.equations < 2 * layer.columns}
        if few:
            name, layer = max(few.items(), key=lambda item: item[1].columns / item[1].equations)
            enough = -(-2 * layer.columns * self.examples // max(1, layer.equations))
            text += f"; {name} has {layer.equations} equations for {layer.columns} weights, {enough} examples would do"
        if self.left:
            name, why = next(iter(self.left.items()))
            text += f"; left {len(self.left)} as they were cut, such as {name}: {why}"
        return text + "."


def name_part(name: str, number: int, parts: int) -> str:
    """Name one of the products that read a parameter: by the parameter, and by its number if there are several.

    Args:
        name: The parameter.
        number: The number of the product, from 0.
        parts: How many products read it.

    Returns:
        The name.
    """
    return name if parts == 1 else f"{name}, part {number + 1}"
