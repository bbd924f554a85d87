"""The style that all figures of the page share: colours, layout, and text without markup."""

import html
from typing import Any

KEPT, REMOVED, BASE, GRID, INK = "#2a6f5b", "#d9dfdc", "#8b9791", "#e8ecea", "#26302c"
SERIES = (KEPT, BASE, "#c7812b", "#4f6d9c", "#a33a2a", "#7d9a3c", "#7c5c8f")  # used in turn
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}
LONGEST = 22  # characters of a name


def layout(**more: object) -> dict[str, Any]:
    """Return the layout of a figure: what all figures share, and the entries `more`."""
    legend = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "itemclick": False}
    return {
        "font": FONT,
        "margin": {"l": 10, "r": 16, "t": 40, "b": 46},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": legend | {"traceorder": "normal"},
        "xaxis": {"fixedrange": True, "gridcolor": GRID, "zeroline": False},
        **more,
    }


def named_rows(names: list[str]) -> dict[str, Any]:
    """Return a vertical axis on which row i, counted from the top, has the label names[i]."""
    axis: dict[str, Any] = {
        "tickvals": list(range(len(names))),
        "ticktext": [shorten(name) for name in names],
        "ticks": "outside",
    }
    axis |= {"tickcolor": "#0000", "autorange": "reversed", "automargin": True}
    return axis | {"fixedrange": True, "showgrid": False, "zeroline": False}


def shorten(name: str) -> str:
    """Return the end of a name, which distinguishes layers, as plain text."""
    return plain(name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}")


def plain(text: str) -> str:
    """Escape text for plotly, which would interpret some HTML, and TeX between two dollar signs."""
    return html.escape(text, quote=False).replace("$", "&#36;")
