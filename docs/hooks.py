"""Prepare kvexp for mkdocs, which runs this before it builds the site."""

from typing import Any

import kvexp
from pymdownx.slugs import slugify


def on_config(config: Any) -> None:
    """Load the library's lazy names for mkdocstrings; give headings GitHub's anchors, so that links hold in both."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    vars(kvexp).update({name: getattr(kvexp, name) for name in kvexp.__all__})
