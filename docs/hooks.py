"""What mkdocs runs before it builds the site."""

from typing import Any

import kvexp


def on_config(_config: Any) -> None:
    """The library's names, which are looked up when they are asked for, are there to be found."""
    vars(kvexp).update({name: getattr(kvexp, name) for name in kvexp.__all__})
