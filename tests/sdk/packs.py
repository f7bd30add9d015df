"""Packs made by hand, for tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from isentrope import Segment
from isentrope.learner.packing import Inputs, pack


def packed_rows(ids: Tensor, sampled_from: int) -> Inputs:
    """Pack the rows of ids [R, L], of which the tokens from a position on are sampled."""
    sampled = np.arange(ids.shape[1]) >= sampled_from
    nothing = np.zeros(ids.shape[1])
    segments = [Segment(row.numpy(), sampled, nothing, nothing, nothing) for row in ids]
    return pack(segments, torch.device("cpu"), torch.float32)
