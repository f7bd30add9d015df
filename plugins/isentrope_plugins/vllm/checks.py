"""What ``isentrope doctor`` says of vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from isentrope import Diagnosis, IsentropeError
from isentrope_plugins.vllm.installation import examine
from isentrope_plugins.vllm.place import Place


def check() -> Iterator[Diagnosis]:
    """Say whether vLLM is installed where runs look for it, and whether it can be imported."""
    place = Place.default()
    if not place.is_ours:
        fix = "isentrope vllm install"
        yield Diagnosis("vllm", "absent", f"not in {place.root}", fix=fix)
        return
    try:
        number, platform = examine(place).split()
    except (OSError, IsentropeError) as error:
        fix = "isentrope vllm install"
        yield Diagnosis("vllm", "broken", f"{place.root}: {error}", fix=fix)
        return
    yield Diagnosis("vllm", "ok", f"{number}, platform {platform}, in {place.root}")
