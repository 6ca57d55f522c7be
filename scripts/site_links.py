"""A hook of mkdocs: links from the pages to files beside ``docs/`` become their names, since the site has not those."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)
