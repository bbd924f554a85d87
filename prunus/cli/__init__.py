"""The command line.

Its files, in the order in which to read them:

    terminal        a console for text from files and folder names
    describe        tables for `inspect`, `methods` and `tasks`
    answers         the answers of `predict`
    finished        the table of a run
    task_options    the options of a task as options of the command
    parameters      the types of the commands' parameters
    folders         a new folder for a command that was given none
    run_options     the options that `run` and `compare` share
    showing         the commands that run nothing: inspect, methods, tasks
    commands        one function per command
    program         main: exit status, and errors as one sentence
"""

from prunus.cli.program import main

__all__ = [
    "main",
]
