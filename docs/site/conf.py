"""Settings of Sphinx; docs/site/build.py stages the sources and calls it."""

import os
import re
from importlib.metadata import version as version_of

import sphinxcontrib.katex

from ddfp_lib.lessons import public_address

REPOSITORY = public_address()  # of the library that is imported: this file is read from a copy

project = "ddfp"
author = "the ddfp contributors"
copyright = "the ddfp contributors, Apache-2.0"
version = release = version_of("ddfp")
html_title = "ddfp"
html_context = {"default_mode": "auto"}  # light or dark, as the system is
language = "en"
smartquotes_action = "qe"  # quotes and ellipses; an option such as --data keeps its two dashes

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",  # the lines of the library, a click from their description
    "sphinx_copybutton",
    "sphinxcontrib.katex",
]

# Lessons are shown as they are stored.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "html_image", "colon_fence"]
myst_heading_anchors = 3
# Code is linked where it is defined. Else a constant such as tuple[str, str] would be looked for in
# the module `builtins`, which has no source and so no page.
viewcode_follow_imported_members = False
html_domain_indices = False  # the pages of the API list the modules
html_copy_source = False
html_show_sourcelink = False

katex_prerender = True
# on a busy machine node takes longer to start than the 5 seconds that are allowed
sphinxcontrib.katex.STARTUP_TIMEOUT = sphinxcontrib.katex.RENDER_TIMEOUT = 120.0
# By a file, the server is asked as soon as the file exists: on a busy machine before it listens.
sphinxcontrib.katex.KaTeXServer.start_server_process = (
    sphinxcontrib.katex.KaTeXServer.start_network_socket
)
katex_css_path = "katex/katex.min.css"

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"exclude-members": "set"}  # matplotlib writes it for each figure
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

templates_path = ["_templates"]
html_theme = "sphinx_book_theme"
html_static_path = ["_static", os.environ.get("DDFP_KATEX", "_katex")]
html_favicon = "_static/icon.svg"  # without one a browser asks for /favicon.ico
html_css_files = ["site.css"]
html_js_files = ["site.js"]
# Links to the main pages alone: the list of all pages is made anew for each of 130 source files, a
# sixth of the build.
html_sidebars = {
    "_modules/**": ["navbar-logo.html", "search-button-field.html", "source-nav.html"],
}
html_theme_options = {
    "navbar_persistent": [],  # the theme below would show a second search field
    "repository_url": REPOSITORY,
    "use_repository_button": bool(REPOSITORY),
    "use_download_button": False,
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
}

SIZE = r"(?:\*[A-Za-z]\w*|[A-Z](?:/\w+|_\w+)?|[hw]|\d+|[a-z]+_[a-z]+|\.\.\.|[A-Z]+ [-*+] \w+)"
SHAPE = re.compile(rf"\({SIZE}(?:, ?{SIZE})*,?\)")
"""A shape such as (B, C, *S)."""


def _shapes_as_code(app, what, name, obj, options, lines):
    """Mark shapes as code: reST would read the star of (B, *S) as emphasis."""
    ruled = [n for n, line in enumerate(lines) if re.match(r"=+ +=+", line.strip())]
    for number, line in enumerate(lines):
        in_table = ruled and ruled[0] <= number <= ruled[-1]
        if in_table or ">>>" in line or line.count("`") % 2:
            continue
        parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
        parts[::2] = [SHAPE.sub(lambda found: f"``{found[0]}``", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def _returns_without_types(app, what, name, obj, options, lines):
    """Keep a colon in the text of Returns and Yields: napoleon would read a type before it."""
    for number, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            text = lines[number + 1]
            indent = len(text) - len(text.lstrip())
            if ":" in text:
                lines[number + 1] = f"{text[:indent]}: {text[indent:]}"


KEPT_COLON = "\ue000"
"""Stands for a colon while napoleon reads."""


def _values_without_types(app, what, name, obj, options, lines):
    """Hide a colon in what describes a value: napoleon would read a type before it."""
    if what in ("data", "attribute") and lines:
        lines[0] = lines[0].replace(":", KEPT_COLON)


def _colons_again(app, what, name, obj, options, lines):
    """Show it again, after napoleon."""
    lines[:] = [line.replace(KEPT_COLON, ":") for line in lines]


OPTION = re.compile(r"~?(?:\w+\.)*Annotated\[(.+?), <typer\.models\.\w+ object at 0x[0-9a-f]+>\]")
"""An option of the command line, as autodoc writes it."""


def _options_as_types(app, what, name, obj, options, signature, returned):
    """Show the type of an option of the command line, without the object that describes it."""
    return (OPTION.sub(r"\1", signature), returned) if signature else None


def setup(app):
    """Connect the changes of docstrings, before napoleon reads them, and of signatures."""
    app.connect("autodoc-process-docstring", _values_without_types, priority=99)
    app.connect("autodoc-process-docstring", _colons_again, priority=900)
    app.connect("autodoc-process-signature", _options_as_types)
    app.connect("autodoc-process-docstring", _shapes_as_code, priority=100)
    app.connect("autodoc-process-docstring", _returns_without_types, priority=101)
