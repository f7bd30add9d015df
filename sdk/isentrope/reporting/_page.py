"""A page: what stands on it, put into a template and written to one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isentrope.errors import ConfigError
from isentrope.reporting._figures import PALETTE, Line
from isentrope.reporting._text import counted, visible

if TYPE_CHECKING:
    from jinja2 import Environment


CHARTS = ("plotly", "charts.js")
BROWSER = ("vendor/preact.js", "vendor/preact-hooks.js", "vendor/htm.js", "episodes.js")
LIVE = ("live.js",)


def render(template: str, scripts: Iterable[str], *, live: str | None = None, **values: Any) -> str:
    """Fill a template.

    scripts: assets that the page runs. live: not None where the page may ask its server.
    """
    texts = [_plotly() if name == "plotly" else _asset(name) for name in scripts]
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in texts) or "'none'"
    return (
        _templates()
        .get_template(template)
        .render(
            style=_asset("page.css"),
            scripts=texts,
            hashes=hashes,
            palette=PALETTE,
            live=live,
            **values,
        )
    )


@cache
def _templates() -> Environment:
    """Return the templates, in which every value is escaped and made visible."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if type(value) is str else value

    def as_script_data(value: Mapping[str, Any]) -> Markup:
        """Write JSON that ends no script element, whatever its strings hold."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        for character in "<>&":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return Markup(text)  # noqa: S704  # escaped above, and json.dumps leaves only ASCII

    made = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["as_script_data"] = as_script_data
    made.filters["counted"] = counted
    return made


def _asset(name: str) -> str:
    return files("isentrope.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n")


def _digest(script: str) -> str:
    """Return what the page's content security policy names a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def write(path: Path, page: str) -> Path:
    try:
        path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"Page {path} cannot be written: {error.strerror}.") from error
    return path


def swatch(style: int) -> str:
    """Return a run's colour, as the charts draw it, for light and for dark screens."""
    hue = Line("", (), (), style).hue
    return f"light-dark({hue}, {PALETTE[hue]})"
