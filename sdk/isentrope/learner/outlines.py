"""Outlines: a model without the numbers of its weights, small enough to be sent.

Of several ranks, the first alone loads the model. The others have its outline, on torch's meta
device, until `shard` sends them what becomes their shards: so the machine's memory holds the model
once, and not once for each rank.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from isentrope.learner.ranks import Ranks
from isentrope.models import LanguageModel


def on_first(build: Callable[[], LanguageModel], ranks: Ranks) -> LanguageModel:
    """Return the model that the first rank builds; on the others, its outline.

    A model that cannot be sent is built by the others too, after the first: that may fill a cache.

    Raises `OtherRankError` on the others where it raised on the first.
    """
    made: list[LanguageModel] = []

    def outlined() -> bytes | None:
        made.append(build())
        return outline(made[0]) if ranks.size > 1 else None

    sent = ranks.by_first(outlined)
    if made:
        return made[0]
    return build() if sent is None else of_outline(sent)


def outline(model: LanguageModel) -> bytes | None:
    """Return all of a model but its weights; None, with a warning, where it cannot be pickled."""
    file = io.BytesIO()
    here = model.model.device.type == "cpu"
    device = model.device if here else torch.device(model.device).type  # each rank's own GPU
    try:
        _Outliner(file, model.model).dump(attrs.evolve(model, device=device))
        of_outline(file.getvalue())
    except Exception as error:  # a model's classes are anybody's
        warnings.warn(
            f"{type(model.model).__name__} cannot be sent to other ranks ({error}): each loads it, "
            "and the machine's memory holds it as often.",
            stacklevel=2,
        )
        return None
    return file.getvalue()


def of_outline(data: bytes) -> LanguageModel:
    """Return the model of an outline, its weights and buffers on the meta device."""
    found: LanguageModel = pickle.loads(data)  # noqa: S301  # of our own first rank
    return found


class _Outliner(pickle.Pickler):
    """Pickles a module's parameters and buffers as their shapes, and all else as it is."""

    def __init__(self, file: io.BytesIO, module: nn.Module) -> None:
        super().__init__(file)
        self._weights = {id(t) for t in (*module.parameters(), *module.buffers())}

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler`; what is in two places stays one object."""
        if id(obj) not in self._weights:
            return NotImplemented
        trained = obj.requires_grad if isinstance(obj, nn.Parameter) else None
        return _shape, (tuple(obj.shape), obj.dtype, trained)


def _shape(size: tuple[int, ...], dtype: torch.dtype, trained: bool | None) -> Tensor:
    """Make a parameter that is trained or frozen; None: a buffer."""
    tensor = torch.empty(size, dtype=dtype, device="meta")
    return tensor if trained is None else nn.Parameter(tensor, requires_grad=trained)
