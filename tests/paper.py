"""Configs of the paper's models, as their publishers print them; no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen3Config

SHAPES: dict[str, dict[str, int]] = {
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "32B": {
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
    },
}
COMMON: dict[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}


def qwen3(size: str, folder: Path, **changes: Any) -> Path:
    """Write the config of a Qwen3, and nothing else; return the folder."""
    place = folder / f"qwen3-{size}"
    Qwen3Config(**SHAPES[size] | COMMON | changes).save_pretrained(place)
    return place
