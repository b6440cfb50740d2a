"""How Sphinx makes the site of these pages: ``make docs``.

The pages are plain Markdown, so that they read as well on a forge. The navigation is made of the
lists in index.md; formulas become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

from docutils import nodes
from latex2mathml.converter import convert

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "CheXGenBench"
author = "The CheXGenBench developers"
version = release = metadata.version("chexgenbench")
language = "en"

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False


def navigation(page: str) -> str:
    """The page with a hidden table of contents for each list of links under a heading.

    >>> print(navigation("## Start\\n\\n- [Quick](quick.md): a, b\\n"))
    ## Start
    <BLANKLINE>
    - [Quick](quick.md): a, b
    <BLANKLINE>
    ```{toctree}
    :hidden:
    :caption: Start
    <BLANKLINE>
    Quick <quick>
    ```
    <BLANKLINE>
    """
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    for at, part in enumerate(parts):
        links = re.findall(r"^- \[([^]]+)\]\(([^)]+)\.md\)", part, re.MULTILINE)
        if links:
            caption = part.partition("\n")[0].removeprefix("## ")
            entries = "\n".join(f"{title} <{name}>" for title, name in links)
            toctree = f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
            parts[at] = f"{part.rstrip()}\n\n{toctree}\n"
    return "".join(parts).rstrip() + "\n"


def _navigation(app: Sphinx, name: str, source: list[str]) -> None:
    if name == "index":
        source[0] = navigation(source[0])


def _formula(translator: HTML5Translator, node: nodes.Element) -> None:
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def _accessible(app: Sphinx, name: str, template: str, context: dict[str, Any], _: object) -> None:
    """What the theme leaves out: levels of its headings, and keys to scroll what is wide."""
    tree = str(context.get("furo_navigation_tree", ""))
    context["furo_navigation_tree"] = tree.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )
    if "body" in context:
        wide = r'<(div(?= class="(?:table|math)-wrapper)|pre(?=[ >]))'
        context["body"] = re.sub(wide, r'<\1 tabindex="0"', context["body"])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    app.connect("source-read", _navigation)
    app.connect("html-page-context", _accessible, priority=900)  # after the theme has made it
