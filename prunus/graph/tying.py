"""The search for the axes that a model's config can make smaller, and with which of its integers.

Each integer that the model's class reads is made smaller, alone or with others by the same share, until nothing changes
that has to stay (see configs.py). Axes that no integers say in this way stay whole. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from prunus.graph.configs import REFUSED, Config, Trial
from prunus.graph.making import Path
from prunus.graph.ties import Tie, Ties

_MOST_FIELDS = 6  # that shrink together


def config_ties(config: Config) -> Ties:
    """Find the axes that a config can make smaller.

    Args:
        config: The config.

    Returns:
        The ties, each with the integers that say it, and the axes that stay whole, with the reason.
    """
    ties: list[Tie] = []
    reasons: dict[str, str] = {}
    fields = config.fields | config.added
    tried = {path: config.about_half({path: value}, value) for path, value in fields.items()}
    single = {
        path: trial
        for path, trial in tried.items()
        if trial is None or (trial.complete and (trial.axes or trial.wrong))
    }
    for path, trial in sorted(
        single.items(), key=lambda each: len(each[1].wrong) if each[1] else len(fields)
    ):
        found = _completed(config, fields, single, path)
        if found is not None:
            _accept(config, ties, found, reasons)
        elif trial is not None:
            why = f"{'.'.join(map(str, path))} says its size, and changes {trial.wrong[0]} as well"
            reasons |= {name: why for name in trial.touches if name in config.named and name not in reasons}
    tied = {name for tie in ties for name in tie.axes}
    usual = "no integer of the model's config says its size alone"
    held = {name: reasons.get(name, usual) for name in config.along if name not in tied}
    return Ties(tuple(ties), held, config.added if ties else {})


def _completed(
    config: Config, fields: Mapping[Path, int], single: Mapping[Path, Trial | None], first: Path
) -> Tie | None:
    """The tie of an integer, with as few others as it needs; None if there is none."""
    chosen, trial = [first], single[first]
    while trial is None or trial.wrong:
        best: tuple[Path, Trial] | None = None
        for path, other in single.items():
            apart = other is not None and trial is not None and not other.touches & trial.touches
            parts = gcd(*(fields[each] for each in (*chosen, path)))
            if path in chosen or apart or parts < 2 or len(chosen) == _MOST_FIELDS:
                continue
            both = config.about_half({each: fields[each] for each in (*chosen, path)}, parts)
            if both is not None and (best is None or len(both.wrong) < len(best[1].wrong)):
                best = path, both
        if best is None or (trial is not None and len(best[1].wrong) >= len(trial.wrong)):
            return None
        chosen.append(best[0])
        trial = best[1]
    return _with_parts(config, {path: fields[path] for path in chosen}, trial.axes)


def _with_parts(config: Config, fields: Mapping[Path, int], names: tuple[str, ...]) -> Tie | None:
    """A tie in the finest steps with which the model holds what was saved.

    A size that its class refuses is no reason for coarser steps: it may be taken beside other sizes (a width that has
    to be a multiple of the number of heads), which `Config.misfits` finds out.
    """
    whole = gcd(*fields.values(), *(config.named[name].size for name in names))
    for parts in sorted((n for n in range(2, whole + 1) if names and whole % n == 0), reverse=True):
        half, most = config.about_half(fields, parts), config.attempt(fields, parts - 1, parts)
        tried = [trial for trial in (half, most) if trial is not None]
        if half is not None and all(not trial.wrong and trial.axes == names for trial in tried):
            return Tie(names, parts, dict(fields))
    return None


def _accept(config: Config, ties: list[Tie], new: Tie, reasons: dict[str, str]) -> None:
    """Add a tie if the model holds what was saved with all of them."""
    if any(set(new.axes) & set(tie.axes) for tie in ties):
        return
    sizes = {name: axis.size for name, axis in config.named.items()}
    together = Ties((*ties, new))
    widths = sizes | {
        name: sizes[name] // tie.parts * max(1, tie.parts // 2) for tie in together.tied for name in tie.axes
    }
    wrong = config.misfits(together.fields(sizes, widths), widths)
    if wrong and wrong != [REFUSED]:  # which others may do (see `_with_parts`)
        reasons |= dict.fromkeys(new.axes, f"with other axes it changes {wrong[0]}")
    else:
        ties.append(new)
