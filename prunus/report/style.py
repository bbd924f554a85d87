"""What all figures of the page share: colours, layout, and text that cannot be taken for markup."""

import html

KEPT, REMOVED, BASE, GRID, INK = "#2a6f5b", "#d9dfdc", "#8b9791", "#e8ecea", "#26302c"
SERIES = (KEPT, BASE, "#c7812b", "#4f6d9c", "#a33a2a", "#7d9a3c", "#7c5c8f")  # in turn
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": INK}
LONGEST = 22  # letters of a name


def layout(**more: object) -> dict:
    """The layout of a figure, with what is its own."""
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


def named_rows(names: list[str]) -> dict:
    """A vertical axis on which row i, counted from the top, is called names[i]."""
    axis = {
        "tickvals": list(range(len(names))),
        "ticktext": [short(name) for name in names],
        "ticks": "outside",
    }
    axis |= {"tickcolor": "#0000", "autorange": "reversed", "automargin": True}
    return axis | {"fixedrange": True, "showgrid": False, "zeroline": False}


def short(name: str) -> str:
    """The end of a name, which tells layers apart, as plain text."""
    return plain(name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}")


def plain(text: str) -> str:
    """Text that plotly shows as it is: it would read some HTML, and TeX between two dollar signs."""
    return html.escape(text, quote=False).replace("$", "&#36;")
