"""Seeds for everything random in a run, as pure functions of what they are for.

No generator is carried from one iteration to the next, so a resumed run draws what it would have
drawn, and what one part draws never depends on how much another drew before it.
"""

from __future__ import annotations

from hashlib import sha256


def derive(seed: int, *key: int | str) -> int:
    """Return a seed in [0, 2**63) for one purpose, such as ``derive(seed, "tasks", epoch)``."""
    text = "\0".join(repr(part) for part in (seed, *key))
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little") >> 1
