"""Show texts from outside, such as rows and names of folders, on a terminal, which they must not steer."""

import logging
import sys
from contextlib import suppress

_LAYOUT = "\n\t"


def make_printable(text: str) -> str:
    r"""Replace each character that is not printable, such as the escape of a terminal, by its name: `\x1b`.

    Newlines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in _LAYOUT else letter.encode("unicode_escape").decode()
        for letter in text
    )


def say(line: str) -> None:
    """Print a line to stderr; ignore a closed pipe or a full disk."""
    with suppress(OSError):
        print(make_printable(line), file=sys.stderr)  # noqa: T201  # what a person reads beside the table


class LogFormatter(logging.Formatter):
    """Formats a message for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, printable."""
        return make_printable(super().format(record))
