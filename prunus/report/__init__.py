"""What a run found, for people: a table in the terminal (tables.py) and one self-contained page (page.py).

Both read only what result.json holds; nothing here computes a result.
"""

from prunus.report.page import write_page as write_page
from prunus.report.tables import comparison as comparison
from prunus.report.tables import measured as measured
from prunus.report.tables import summary as summary
