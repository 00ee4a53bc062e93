"""Run the command line: `python -m kvexp`, and the console script `kvexp`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while its modules are imported."""
    try:
        from kvexp import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
