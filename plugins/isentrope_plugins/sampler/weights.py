"""Copying published weights into a decoder: all of them, or none and a sentence that says why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from isentrope import EngineError

if TYPE_CHECKING:
    from torch import Tensor


def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy `source` into the tensors of `target` by name, casting to their dtype and device.

    A tied parameter may come under any of its names. Raises `EngineError`, before anything is
    written, where names or shapes do not match.
    """
    _check(source, target)
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)


def _check(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if unknown := source.keys() - target.keys():
        raise EngineError(f"published weights that the model does not have: {_listed(unknown)}.")
    # Tied parameters share their memory: one name brings them all.
    brought = {target[name].data_ptr() for name in source}
    if missing := [name for name, place in target.items() if place.data_ptr() not in brought]:
        raise EngineError(f"published weights lack parameters of the model: {_listed(missing)}.")
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise EngineError(
                f"published weight {name!r} has shape {tuple(tensor.shape)}, "
                f"but the model's has {tuple(target[name].shape)}."
            )


def _listed(names: Iterable[str], limit: int = 4) -> str:
    known = sorted(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return ", ".join(repr(name) for name in known[:limit]) + more
