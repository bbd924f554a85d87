"""The report: tables for the terminal and a page, from result.json alone.

Its files, in the order in which to read them:

    contents   what result.json holds, and its reader
    style      colours and fonts
    rows       the values in result.json, as rows of text
    tables     tables for the terminal: one run, several runs, milliseconds
    figures    figures for the page
    page       report.html, one file
    board      a comparison of methods, as rows and as a table
    board_page compare.html, one file
"""

from prunus.report.board import board_table
from prunus.report.board_page import write_board
from prunus.report.contents import (
    AnyChart,
    Costs,
    InEightBits,
    Kept,
    Latency,
    Recovered,
    Repaired,
    Row,
    Verified,
    check_number,
    check_repaired,
    check_sparse,
    read_result,
)
from prunus.report.page import write_page
from prunus.report.rows import int8_sentence
from prunus.report.tables import bench_table, comparison, summary

__all__ = [
    "AnyChart",
    "Costs",
    "InEightBits",
    "Kept",
    "Latency",
    "Recovered",
    "Repaired",
    "Row",
    "Verified",
    "bench_table",
    "board_table",
    "check_number",
    "check_repaired",
    "check_sparse",
    "comparison",
    "int8_sentence",
    "read_result",
    "summary",
    "write_board",
    "write_page",
]
