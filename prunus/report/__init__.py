"""The report: tables for the terminal and a page, from result.json alone.

Its files, in the order in which to read them:

    style      colours and fonts
    rows       the values in result.json, as rows of text
    tables     tables for the terminal: one run, several runs, milliseconds
    figures    figures for the page
    page       report.html, one file
"""

from prunus.report.page import write_page
from prunus.report.tables import bench_table, comparison, summary

__all__ = [
    "bench_table",
    "comparison",
    "summary",
    "write_page",
]
