"""Turn rows into what people read: a table on the console, and a page with figures.

May import kvexp.results and the rooms below it. This package alone imports neither matplotlib nor jinja2.
"""

from kvexp.report.console import PrintableConsole, print_summary
from kvexp.report.format import number

__all__ = ["PrintableConsole", "number", "print_summary"]
