"""Plans: the widths and costs before and after a cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunus.graph import Graph
from prunus.metrics import format_number
from prunus.selection import cost


@dataclass(frozen=True)
class Plan:
    """The changes that a keep would make; as text, a table.

    Args:
        axes: axis -> (units before, units after).
        costs: cost -> (before, after).
    """

    axes: dict[str, tuple[int, int]]
    costs: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        rows = [("axis", "before", "after", "kept")]
        rows += [(name, str(old), str(new), f"{new / old:.1%}") for name, (old, new) in self.axes.items()]
        rows += [
            (name, format_number(old), format_number(new), f"{new / old:.1%}")
            for name, (old, new) in self.costs.items()
        ]
        wide = max(len(name) for name, *_ in rows)
        return "\n".join(f"{name:<{wide}} {old:>10} {new:>10} {share:>8}" for name, old, new, share in rows)


def plan(graph: Graph, keep: Mapping[str, Sequence[int]]) -> Plan:
    """Compute the widths and costs before and after a cut; changes nothing.

    Args:
        graph: The graph of the model.
        keep: axis -> kept indices; axes left out stay whole.

    Returns:
        The plan.

    Raises:
        UserError: `keep` does not fit the graph.
    """
    sizes, widths = graph.widths(), graph.widths(keep)
    costs = {name: (cost.of(graph, name, sizes), cost.of(graph, name, widths)) for name in cost.CLOSED_FORMS}
    there = {name: both for name, both in costs.items() if both[0]}
    return Plan({name: (sizes[name], widths[name]) for name in sizes}, there)
