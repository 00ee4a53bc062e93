"""Keep the tracebacks of a job's failed points in its folder, for whoever wrote the implementation."""

from pathlib import Path

from kvexp.host.plain_file import open_plain

TRACEBACKS = "tracebacks.txt"


def append(folder: Path, num_tokens: int, traceback: str) -> None:
    """Append the traceback of one point to the folder's file.

    Raises:
        OSError: It cannot be written.
    """
    with open(folder / TRACEBACKS, "a", encoding="utf-8", errors="replace", opener=open_plain) as file:
        file.write(f"num_tokens {num_tokens}\n{traceback}\n")
