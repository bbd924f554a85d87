"""The program `prunus`: its exit status, and errors and warnings said in a sentence."""

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from inspect import getdoc
from pathlib import Path

import torch
import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff
from tyro.extras import subcommand_cli_from_dict

from prunus.cli.commands import COMMANDS, DESCRIPTION
from prunus.errors import PrunusError, UserError

ERR = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    config = (FlagCreatePairsOff,)
    try:
        command = COMMANDS.get(arguments[0])
        if command is None:  # shows the help, or what is wrong
            subcommand_cli_from_dict(
                COMMANDS, prog="prunus", description=DESCRIPTION, args=arguments, config=config
            )
            return 0
        # Called by itself, so that its help can hold the examples, which tyro takes for a section to leave out.
        told = getdoc(command).partition("\nArgs:")[0]
        with warnings.catch_warnings():
            warnings.showwarning = plainly(warnings.showwarning)
            tyro.cli(
                command, prog=f"prunus {arguments[0]}", description=told, args=arguments[1:], config=config
            )
    except KeyboardInterrupt:
        return complain("stopped. The same command with --resume goes on.", 130, debug)
    except PrunusError as error:
        return complain(f"error: {error}", 2 if isinstance(error, UserError) else 1, debug)
    except Exception as error:
        text = (
            f"unexpected {type(error).__name__}: {error}\n--debug shows where; not in your own code? Tell us."
        )
        return complain(text, 1, debug)
    finally:
        if torch.distributed.is_initialized():  # else its threads may abort a process that ends well
            torch.distributed.destroy_process_group()
    return 0


def plainly(show: Callable) -> Callable:
    """How a warning is shown: ours in a sentence, all others by `show`, with the line of code they come from."""

    def shown(message, category, filename, *more) -> None:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
            ERR.print(f"warning: {message}", markup=False, soft_wrap=True)
        else:
            show(message, category, filename, *more)

    return shown


def complain(text: str, status: int, debug: bool) -> int:
    """Say what went wrong on standard error; the status."""
    if debug:
        traceback.print_exc()
    ERR.print(text, markup=False, soft_wrap=True)
    return status
