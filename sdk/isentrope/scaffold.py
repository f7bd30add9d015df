"""New distributions: a plugin that works on arrival, to be changed into one's own."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from isentrope.errors import ConfigError, UnknownNameError
from isentrope.plugins import registry

TEMPLATES = Path(__file__).with_name("templates")
KINDS = {"env": "environment", "objective": "objective", "controller": "controller"}


def new(kind: str, name: str, out: Path | None = None) -> Path:
    """Write a distribution that brings one component; return its folder.

    kind: of `KINDS`. name: of the distribution and of the component, in small letters, digits and
    dashes. out: the folder to write, by default one of that name in the present one.

    Raises `ConfigError` for a name that cannot be, that is taken, or whose folder exists.
    """
    from cookiecutter.generate import generate_files

    if kind not in KINDS:
        raise UnknownNameError("Kind", kind, KINDS)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"A name is small letters, digits and dashes, like my-{kind}; got {name!r}."
        )
    if name in registry().specs(KINDS[kind]):
        raise ConfigError(f"There is an installed {KINDS[kind]} {name!r} already: choose another.")
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or find_spec(package) is not None:
        raise ConfigError(f"Python knows {package!r} already; choose another name.")
    folder = (out or Path(name)).expanduser()
    if folder.exists():
        raise ConfigError(f"{folder} exists already; choose another --out, or another name.")
    words = name.split("-")
    release = version("isentrope").split(".")
    context = {
        "folder": folder.absolute().name,
        "distribution": name,
        "package": package,
        "class_name": "".join(word.capitalize() for word in words),
        "id": name,
        "sdk": ".".join(release[:2]),
        "next_sdk": f"{release[0]}.{int(release[1]) + 1}",
    }
    try:
        generate_files(
            TEMPLATES / kind,
            {"cookiecutter": context},
            str(folder.absolute().parent),
            accept_hooks=False,
        )
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return folder
