"""What ``isentrope doctor`` says of vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from isentrope import Diagnosis, IsentropeError
from isentrope_plugins.vllm.installation import examine, is_ours
from isentrope_plugins.vllm.place import Place


def check() -> Iterator[Diagnosis]:
    """Say whether vLLM is installed where runs look for it, and whether it can be imported."""
    place = Place.default()
    if not is_ours(place):
        message = f"not in {place.root}; to install it: isentrope vllm install"
        yield Diagnosis("vllm", "absent", message)
        return
    try:
        number, platform = examine(place).split()
    except (OSError, IsentropeError) as error:
        message = f"{place.root}: {error}; to repair it: isentrope vllm install"
        yield Diagnosis("vllm", "broken", message)
        return
    yield Diagnosis("vllm", "ok", f"{number}, platform {platform}, in {place.root}")
