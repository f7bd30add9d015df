"""AppWorld: the real engine as an environment, in an interpreter of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isentrope_envs.appworld.installation import install as install
    from isentrope_envs.appworld.installation import remove as remove

__all__ = ["install", "remove"]


def __getattr__(name: str) -> Any:
    """Import what installs only where it is used: plugins are listed without."""
    if name in __all__:
        from isentrope_envs.appworld import installation

        return getattr(installation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
