"""A shim: `python -m kvexp` is the console script `kvexp`."""

from kvexp.cli import main

if __name__ == "__main__":
    main()
