"""The report: tables for the terminal and a page to look at, from result.json alone.

Its files, in the order in which to read them:

    style      colours and fonts
    rows       what result.json says, as rows of text
    tables     tables for the terminal: one run, several runs, milliseconds
    figures    figures for the page
    page       report.html, one file
"""

from prunus.report.page import write_page
from prunus.report.rows import count
from prunus.report.tables import comparison, measured, summary

__all__ = [
    "comparison",
    "count",
    "measured",
    "summary",
    "write_page",
]
