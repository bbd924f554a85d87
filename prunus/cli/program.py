"""The program `prunus`: its exit status, and errors and warnings as one sentence."""

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from inspect import getdoc
from pathlib import Path

import torch
import tyro
from tyro.conf import FlagCreatePairsOff
from tyro.extras import subcommand_cli_from_dict

from prunus.cli.commands import COMMANDS, DESCRIPTION
from prunus.cli.task_options import gather_task_options
from prunus.cli.terminal import Terminal
from prunus.errors import PrunusError, UserError

ERR = Terminal(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: The command line without the program's name; None: that of this process.

    Returns:
        The exit status: 0 done, 2 an error in what was given, 130 interrupted, 1 anything else.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    config = (FlagCreatePairsOff,)
    try:
        command = COMMANDS.get(arguments[0])
        if command is None:  # tyro shows the help, or says what is wrong, and exits
            subcommand_cli_from_dict(
                COMMANDS, prog="prunus", description=DESCRIPTION, args=arguments, config=config
            )
            return 0
        if arguments[0] in ("run", "compare"):
            arguments = gather_task_options(arguments)
        # Called directly, so that its help shows the examples: tyro takes "Examples:" for a section to leave out.
        description = (getdoc(command) or "").partition("\nArgs:")[0]
        with warnings.catch_warnings():
            warnings.showwarning = shorten_warnings(warnings.showwarning)
            tyro.cli(
                command,
                prog=f"prunus {arguments[0]}",
                description=description,
                args=arguments[1:],
                config=config,
            )
    except KeyboardInterrupt:
        return complain("stopped. To continue, repeat the command with --resume.", 130, debug)
    except PrunusError as error:
        return complain(f"error: {error}", 2 if isinstance(error, UserError) else 1, debug)
    except Exception as error:
        text = (
            f"unexpected {type(error).__name__}: {error}\nRepeat the command with --debug to see where; if it is not "
            "in your own code, please report it."
        )
        return complain(text, 1, debug)
    finally:
        if torch.distributed.is_initialized():  # otherwise its threads may abort a process at its end
            torch.distributed.destroy_process_group()
    return 0


def shorten_warnings(show: Callable[..., None]) -> Callable[..., None]:
    """Make a function that shows our warnings as one sentence, and others by `show`, with their line of code."""

    def shown(message, category, filename, *more) -> None:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
            ERR.print(f"warning: {message}", soft_wrap=True)
        else:
            show(message, category, filename, *more)

    return shown


def complain(text: str, status: int, debug: bool) -> int:
    """Print an error on standard error; returns the status."""
    if debug:
        ERR.print(traceback.format_exc(), soft_wrap=True)
    ERR.print(text, soft_wrap=True)
    return status
