"""Whether a model's own config makes it: then what `save_pretrained` wrote is what `from_pretrained` loads."""

from __future__ import annotations

from torch import nn

from prunus.errors import UserError, one_line
from prunus.graph import Maker, difference_of_made

MOST = 3  # differences that the error names
INSTEAD = (
    "Select again with uniform=True, which keeps to widths that the config can say; or save with prunus.save(folder, "
    "small, keep, graph), and load with prunus.load(folder, model)."
)


def check_config(model: nn.Module) -> None:
    """Check that a model is what its config makes, for `save_pretrained` and `from_pretrained` of transformers.

    The model's class is made again from the config as it comes back from a file, without weights. Names and shapes of
    all tensors have to agree, and so have the numbers that no file holds: the frequencies of rotary embeddings, and
    the factors that a constructor computes from sizes.

    Args:
        model: A shrunk model, or any other that keeps the config that it was made from.

    Raises:
        UserError: The model keeps no config, or one that makes another model; the message names the tensors that
            differ, the fields of the config, and what to do.
    """
    kind = type(model).__name__
    maker = Maker.of(model)
    if maker is None:
        raise UserError(
            f"{kind} does not keep the arguments that it is made from, as models of transformers keep `config`, so it "
            "cannot be made again from them. Save it with prunus.save, and load it with prunus.load."
        )
    notes = [note for note in getattr(model, "prunus_notes", ()) if note.startswith(tuple(maker.kept))]
    try:
        again = maker.make({})
    except Exception as error:  # whatever a constructor raises
        found = [f"its class refuses the config ({one_line(error)})"]
    else:
        found = difference_of_made(model, again)
    if found:
        more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
        fields = f" {' '.join(notes[:MOST])}" if notes else ""
        raise UserError(
            f"the config of this {kind} makes another model: {'; '.join(found[:MOST])}{more}.{fields} {INSTEAD}"
        )
