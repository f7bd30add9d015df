"""How `make docs` builds the site: offline, and every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Isentrope"
author = "The Isentrope authors"
copyright = "The Isentrope authors, Apache-2.0"  # noqa: A001  # Sphinx's name

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "mathml",
    "names",
    "generated",
]
exclude_patterns = ["figures/*"]

html_theme = "furo"
html_title = "Isentrope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
smartquotes = False  # they make a dash of an option's two

default_role = "py:obj"
add_module_names = False
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
