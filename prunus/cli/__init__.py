"""The command line.

Its files, in the order in which to read them:

    describe    tables for `inspect` and `methods`
    commands    one function per command
    program     main: exit status, errors in a sentence
"""

from prunus.cli.program import main

__all__ = [
    "main",
]
