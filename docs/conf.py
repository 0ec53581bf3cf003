"""The documentation's site. Its root is the repository's, so that links lead to the same files in both."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import speech_ssl

project = "speech-ssl"
author = "The speech-ssl contributors"
release = version = speech_ssl.__version__

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/*.rst",
    "examples/README.md",
    "benchmarks/README.md",
    "speech_ssl/assets/*.md",
    "speech_ssl/assets/prompts/*.md",
]
exclude_patterns = ["**/.*", ".*", "build", "runs", "tests", "service", "recipes"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
nitpicky = True
suppress_warnings = ["ref.python"]  # answers of the client have the names of those of the runtime
nitpick_ignore_regex = [
    ("py:.*", r"(?!speech_ssl\.).*"),
    ("py:class", ".*"),
]  # annotations name what others document

toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "literal"

html_theme = "alabaster"
html_theme_options = {"description": "From raw audio to a running service", "page_width": "70em"}
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
html_show_sourcelink = html_show_sphinx = html_show_copyright = False


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """The pages that the index links to are the site's contents, in that order."""
    if docname == root_doc:
        pages = "\n".join(re.findall(r"\]\(([^)]+\.(?:md|rst))\)", source[0]))
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def list_entries(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Lines `name: text` at the beginning of a docstring's paragraph, and after each other, become a list."""
    made: list[str] = []
    inside = False
    for line in lines:
        found = re.fullmatch(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)", line)
        if found and (inside or not made or not made[-1]):
            made.append(f"* ``{found[1]}``: {found[2]}")
            inside = True
        elif inside and line:
            made.append("  " + line.strip())
        else:
            made.append(line)
            inside = False
    lines[:] = made


def skip_aliases(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool:
    """Fields of a NamedTuple without words of their own."""
    return skip or (thing.__doc__ or "").startswith("Alias for field number")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", list_entries)
    app.connect("autodoc-skip-member", skip_aliases)
