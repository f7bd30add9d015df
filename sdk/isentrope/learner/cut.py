"""Cut Cross-Entropy (Wijmans et al., arXiv 2411.09009) in the head's place: optional, for GPUs.

Log-probs only. The package (25.1.1) has no entropy and no bias, and its softmax gradient is
float32's ``p - 1``, which is 0 for a token of p > 1 - 6e-8.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from isentrope.errors import ConfigError


@frozen
class CutCrossEntropy:
    """Log-probs by the package's own function."""

    linear_cross_entropy: Callable[..., Tensor]

    @classmethod
    def load(cls, device: torch.device, *, bias: bool) -> CutCrossEntropy:
        """Import the package; raise `ConfigError` where it is missing or would not do."""
        if bias:
            raise ConfigError(
                "learner.head = 'cut-cross-entropy' takes no bias, and the model's output layer "
                "has one: use learner.head = 'chunked'."
            )
        try:
            package = importlib.import_module("cut_cross_entropy")
        except ImportError as error:
            raise ConfigError(
                f"learner.head = 'cut-cross-entropy' cannot be imported ({error}): install "
                "isentrope[gpu], or use learner.head = 'chunked'."
            ) from error
        compiler = os.environ.get("CXX", "g++")  # as torch.compile chooses it
        if device.type == "cpu" and shutil.which(compiler) is None:
            raise ConfigError(
                "learner.head = 'cut-cross-entropy' needs a C++ compiler on a CPU, and there is "
                f"no {compiler}: use learner.head = 'chunked'."
            )
        return cls(package.linear_cross_entropy)

    def __call__(
        self, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float
    ) -> Tensor:
        """Return log-probs [T] float32 of targets [T]; hidden [T, D] and weight [V, D].

        On a GPU, 16-bit states take the kernel, which never holds a row of logits; all others take
        the compiled product, which holds all logits at once, in the states' dtype. Dividing 16-bit
        states by the temperature rounds them again, unless it is a power of two.
        """
        fused = hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16)
        loss = self.linear_cross_entropy(
            hidden if temperature == 1.0 else hidden / temperature,
            weight,
            target,
            reduction="none",
            impl="cce" if fused else "torch_compile",
            filter_eps=None,  # or small gradients would be taken for none
        )
        return -loss.float()
