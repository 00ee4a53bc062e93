"""Prepare kvexp for mkdocs, which runs this before it builds the site."""

from typing import Any

import kvexp


def on_config(_config: Any) -> None:
    """Load the library's lazy names, so that mkdocstrings finds them."""
    vars(kvexp).update({name: getattr(kvexp, name) for name in kvexp.__all__})
