"""Seeds for everything random in a run, as pure functions of what they are for.

No generator is carried from one iteration to the next, so a resumed run draws what it would have
drawn, and what one part draws never depends on how much another drew before it.
"""

from __future__ import annotations

import random
from hashlib import sha256

import numpy as np


def derive(seed: int, *key: int | str) -> int:
    """Return a seed in [0, 2**63) for one purpose, such as ``derive(seed, "tasks", epoch)``."""
    text = "\0".join(repr(part) for part in (seed, *key))
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed every global generator: a part that draws from one is then reproducible too."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
