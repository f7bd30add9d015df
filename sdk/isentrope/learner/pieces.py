"""Tokens as the bytes that they stand for: of a byte-level one these need not be characters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[bytes]:
    """Return each token's text in UTF-8; end to end they are what the tokenizer decodes."""
    added = tokenizer.added_tokens_decoder
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    by_character = _alphabet() if "ByteLevel" in str(getattr(backend, "decoder", "")) else {}

    def piece(token: int) -> bytes:
        if token in added:
            return _utf8(str(added[token].content))
        text: Any = tokenizer.convert_ids_to_tokens(token)
        if text is None:  # the model has more ids than the tokenizer
            return b"<%d>" % token
        if all(character in by_character for character in text):
            return bytes(by_character[character] for character in text)
        if len(text) == 6 and text.startswith("<0x"):  # SentencePiece's single bytes
            return bytes.fromhex(text[3:5])
        return _utf8(text.replace("\u2581", " "))

    return [piece(int(token)) for token in ids]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's: bytes that can be seen are themselves, the others follow from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): b for i, b in enumerate(hidden)}
