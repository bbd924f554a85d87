"""What is printed of a run that has just ended."""

from pathlib import Path

from prunus import report
from prunus.cli.terminal import OUT


def show(values: dict, folder: Path) -> None:
    """Print the table of a run and the paths of its files."""
    OUT.print(report.summary(values))
    if dense := values.get("left_dense"):
        more = f" and {len(dense) - 3} more" if len(dense) > 3 else ""
        hint = f"Left dense, because the pattern does not fit: {', '.join(list(dense)[:3])}{more}."
        OUT.print(hint, soft_wrap=True)
    if "sparsity" in values["after"]:
        hint = f"Zeros make a file smaller, seldom a model faster: `prunus bench {folder}` measures it."
        OUT.print(hint, soft_wrap=True)
    if (minutes := values["settings"].get("minutes")) is not None:
        epochs = values["settings"]["recovery"]["epochs"]
        OUT.print(f"Recovery took {epochs:.3g} epochs, planned for {minutes:g} minutes.", soft_wrap=True)
    OUT.print(f"The smaller model and its report: {folder}/report.html", soft_wrap=True)
