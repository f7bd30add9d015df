"""From messages to token ids, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from isentrope.episodes import Message, Role
from isentrope.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEMBERED = 1024
"""Openings: all rollouts of a group have the same."""
_MARK = "ISENTROPE-ASSISTANT-TURN"


class ChatTemplate:
    """Renders a conversation's opening, and what follows an assistant's turn, as token ids.

    The policy's own turns never pass through here: they stay the ids that were sampled. Control
    tokens spelt out in a message are broken by a zero-width space, so that what an environment
    quotes can neither end a turn nor begin one.

    Raises `ConfigError` for a tokenizer without a chat template, or with one whose turns do not
    end in a stop token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Iterable[int]) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
                "use an instruction-tuned model, or save one with tokenizer.chat_template set."
            )
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        decoder = tokenizer.added_tokens_decoder
        self._control = sorted(str(t.content) for t in decoder.values() if t.special)
        self._opening = lru_cache(REMEMBERED)(self._open)
        self._check_ending()

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the first messages, up to where the assistant begins to speak."""
        return list(self._opening(tuple((m["role"], m["content"]) for m in messages)))

    def reply(self, messages: Sequence[Message], last_id: int) -> list[int]:
        """Return the ids between the assistant's turn that ended in `last_id` and its next turn.

        Rendered behind a stand-in conversation, so that what the template does to earlier turns
        (dropping their thinking, say) touches nothing: the ledger keeps what was sampled.
        """
        stand_in: list[Message] = [
            {"role": "user", "content": "-"},
            {"role": "assistant", "content": _MARK},
        ]
        _, found, text = self._render([*stand_in, *messages]).partition(_MARK)
        if not found:
            raise ConfigError(
                "The chat template drops an assistant's turn as soon as others follow, so what the "
                "policy sampled would not stay in its context; such templates are not supported."
            )
        if last_id in self._stop_ids:
            text = text.removeprefix(str(self._tokenizer.decode([last_id])))
        return self._encode(text)

    def text(self, ids: Sequence[int]) -> str:
        """Return an assistant's turn as text, without the stop token that ended it."""
        spoken = ids[:-1] if ids and ids[-1] in self._stop_ids else ids
        return str(self._tokenizer.decode(list(spoken), clean_up_tokenization_spaces=False))

    def _open(self, messages: Iterable[tuple[Role, str]]) -> tuple[int, ...]:
        return tuple(self._encode(self._render([Message(role=r, content=c) for r, c in messages])))

    def _render(self, messages: Sequence[Message]) -> str:
        plain = [{"role": m["role"], "content": self._inert(m["content"])} for m in messages]
        return str(
            self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        )

    def _inert(self, content: str) -> str:
        content = content.encode("utf-8", "replace").decode()  # no tokenizer reads half a character
        for token in self._control:
            if token in content:
                content = content.replace(token, f"{token[0]}\u200b{token[1:]}")
        return content

    def _check_ending(self) -> None:
        answer: Message = {"role": "user", "content": "-"}
        ending = self.reply([answer], last_id=-1)[:1]
        if not self._stop_ids.intersection(ending):
            stops = [self._tokenizer.decode([i]) for i in sorted(self._stop_ids)]
            raise ConfigError(
                f"The chat template ends an assistant's turn with "
                f"{self._tokenizer.decode(ending)!r}, which is none of the model's stop tokens "
                f"({stops}): the policy would never know when to stop. Set the tokenizer's "
                "eos_token to it."
            )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
