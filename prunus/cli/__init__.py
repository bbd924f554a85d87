"""The command line.

Its files, in the order in which to read them:

    terminal    a console for text from files and folder names
    describe    tables for `inspect` and `methods`
    commands    one function per command
    program     main: exit status, and errors as one sentence
"""

from prunus.cli.program import main

__all__ = [
    "main",
]
