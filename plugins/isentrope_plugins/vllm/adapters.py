"""Adapters as files, where servers find them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from isentrope import Adapter, EngineError

if TYPE_CHECKING:
    from isentrope import LanguageModel


@frozen
class Published:
    """A version of the policy, as servers know it."""

    version: int
    name: str | None
    """Of its adapter, never used before; None: the model itself."""
    path: Path | None

    async def forget(self) -> None:
        """Delete its files."""
        if self.path is not None:
            await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)


def _new_prefix() -> str:
    return f"isentrope-{uuid.uuid4().hex[:8]}"  # servers may have known other runs


@define
class AdapterFiles:
    """The adapters that one engine writes; no two have the same name or path."""

    place: Path | None
    """A folder that servers see under the same path; None: a temporary one of this machine's."""
    prefix: str = field(factory=_new_prefix, init=False)
    """Of all names."""
    written: int = field(default=0, init=False)
    _folder: Path | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        """What everything is written to; made when it is first asked for."""
        if self._folder is None:
            if self.place is None:
                self._folder = Path(tempfile.mkdtemp(prefix="isentrope-adapters-"))
            else:
                self._folder = self.place.absolute() / self.prefix
                self._folder.mkdir(parents=True)
        return self._folder

    async def write(self, version: int, adapter: Adapter) -> Published:
        """Write an adapter: whole, or not at all.

        Raises `EngineError` where it cannot be written.
        """
        name = f"{self.prefix}-v{version}-{self.written}"
        self.written += 1

        def write() -> Path:
            folder = self.folder / name
            draft = folder.with_suffix(".tmp")
            adapter.save(draft)
            return draft.rename(folder)

        try:
            path = await asyncio.to_thread(write)
        except OSError as error:
            raise EngineError(f"The adapter cannot be written: {error}") from error
        return Published(version, name, path)

    async def delete(self) -> None:
        """Delete all that was written."""
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None


def check(adapter: Adapter, model: LanguageModel, rank: int | None) -> None:
    """Refuse adapters of layers that the model does not have, which vLLM would pass over.

    rank: the largest that servers were prepared for; None: any.

    Raises `EngineError` that names the layer, or the rank.
    """
    layers = {name for name, _ in model.model.named_modules()}
    for name in adapter.tensors:
        layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if layer not in layers or part not in ("A.weight", "B.weight"):
            raise EngineError(f"The adapter has {name}, and the model no such layer.")
    has = int(adapter.config["r"])
    if rank is not None and has > rank:
        raise EngineError(f"The adapter has rank {has}; servers were prepared for {rank}.")
