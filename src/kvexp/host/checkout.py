"""Find the checkout that kvexp runs from."""

from pathlib import Path

from kvexp.host.process import ask_git


def find_checkout(file: Path) -> Path | None:
    """Return the root of the checkout that has the file at src/kvexp/ROOM/; None where there is none.

    A repository around a copy or an installation of kvexp, which does not hold its files, is no checkout.
    """
    file = file.resolve()
    root = file.parents[3]
    if not (root / ".git").exists():
        return None
    is_tracked = ask_git("-C", root, "ls-tree", "--name-only", "HEAD", file.relative_to(root).as_posix())
    return root if is_tracked else None
