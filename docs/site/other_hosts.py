"""No page calls another host: scripts, styles, pictures and fonts are the site's own. Links may lead anywhere."""

import re

from mkdocs.exceptions import PluginError

FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc(?:set)?=\"?(?:https?:)?//[^\s\">]+"
    r"|<link\b(?![^>]*rel=\"?(?:canonical|alternate|prev|next))[^>]*\bhref=\"?(?:https?:)?//[^\s\">]+"
    r"|url\(\"?(?:https?:)?//[^)]+|data-md-component=\"?source\b"  # the theme asks GitHub's API for stars beside that
)


def on_post_page(output, page, config):
    """The page as it is. Raises PluginError: it fetches from elsewhere."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} calls another host: {found[0]}")
    return output
