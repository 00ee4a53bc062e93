"""Prepare kvexp for mkdocs, which runs this before it builds the site."""

from typing import Any

from pymdownx.slugs import slugify

import kvexp


def on_config(config: Any) -> None:
    """Load the library's lazy names for mkdocstrings, and give headings the anchors of GitHub."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    vars(kvexp).update({name: getattr(kvexp, name) for name in kvexp.__all__})
