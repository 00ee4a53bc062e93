"""Rows to what people read: a table on the console, and a page.

Importing this package imports neither matplotlib nor jinja2: a sweep's end waits for no figure.
"""

from kvexp.report.console import summary
from kvexp.report.format import number

__all__ = ["number", "summary"]
