"""The tokenizer of an imported model, with the interface of ``sleeplm.data.text.Tokenizer``."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import tokenizers

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import PLAIN, Turns
from sleeplm.pretrained.chat import check_messages, render

#: Characters that no text uses: one of them keeps a special token in a message from being one.
PRIVATE = [chr(code) for code in range(0xE000, 0xF8FF)]
#: How models spell what ends a text where their conversations end a turn with something else.
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")


@dataclasses.dataclass(frozen=True)
class ImportedTokenizer:
    """Byte-level BPE with the ids that the model was trained on.

    ``decode(encode(text)) == text`` for every string that the model's own normaliser leaves alone
    (SmolLM2 and Llama 3 have none; Qwen3 composes accents, NFC). No text encodes to a special
    token, however it is spelt: they come in as ids, or where a chat template puts them.

    Attributes:
      bpe: the model's tokenizer; it is told to read special tokens in texts as text.
      pad, bos, eos: ids of what fills rows, begins and ends a text. They may be one and the same:
        whether a position is padding is for ``segments`` to say, not for its token.
      stops: every id at which generation ends, ``eos`` among them.
      chat_template: Jinja source, or None.
      lead: put in front of every text and taken away again when decoding. With ``" "`` a word has
        the same tokens at the start of a document and in its middle.
      turns: what stands around questions and answers, see :meth:`in_turns`.
    """

    bpe: tokenizers.Tokenizer
    pad: int
    bos: int
    eos: int
    stops: tuple[int, ...] = ()
    chat_template: str | None = None
    lead: str = ""
    turns: Turns = PLAIN

    def __post_init__(self):
        self.bpe.no_padding()
        self.bpe.no_truncation()
        self.bpe.encode_special_tokens = True
        named = [(name, getattr(self, name)) for name in ("pad", "bos", "eos")]
        for name, token in [*named, *(("stops", stop) for stop in self.stops)]:
            there = self.bpe.id_to_token(token) is not None
            checks.require(there, name, token, "is no token's id")
        object.__setattr__(self, "stops", tuple(dict.fromkeys([self.eos, *self.stops])))

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.bpe.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def special(self) -> Mapping[str, int]:
        """Ids of the special tokens, by how they are written."""
        added = self.bpe.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @property
    def end_of_text(self) -> int:
        """Id of what ends a text that may hold several turns; ``eos`` if no token says so."""
        return next((self.special[t] for t in ENDS_OF_TEXT if t in self.special), self.eos)

    def alike_anywhere(self) -> ImportedTokenizer:
        """The same with a ``lead`` of one space, if words need it to have the same tokens at the
        start of a text and in its middle."""
        both = self.encode("word word")
        half = len(both) // 2
        same = both[:half] == both[half:]
        return self if same else dataclasses.replace(self, lead=" ")

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return self._encode([self.lead + text if text else "" for text in texts])

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; special tokens are left out, as is ``lead``."""
        text = self.bpe.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text.removeprefix(self.lead)

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation as the model was taught to read it.

        Only the template's own special tokens are special: what a message holds stays text.

        Args:
          messages: each with ``role`` and ``content``.
          add_generation_prompt: end with what the model is to go on from as the assistant.

        Raises:
          ConfigError: the model has no chat template, or one that needs Jinja where there is none.
        """
        if self.chat_template is None:
            raise ConfigError("chat_template", None, "this model was not made for conversations")
        check_messages(messages)
        written = "".join(text for message in messages for text in message.values())
        mark = next(char for char in PRIVATE if char not in written + self.chat_template)
        hidden = [{k: self._hide(v, mark) for k, v in message.items()} for message in messages]
        return self._with_special(self._render(hidden, add_generation_prompt), mark)

    def in_turns(self, eos: int) -> ImportedTokenizer:
        """The same with questions asked, and answered, in turns as its chat template has them.

        They are those of a conversation that is under way, without what stands before a first
        turn, and the last of it: some templates (Qwen3's) put an empty thought before the last
        answer, and before no earlier one.

        Args:
          eos: what ends a text, which holds several turns: not what ends a turn.

        Raises:
          ConfigError: there is no chat template, its turns depend on what was said before, or
            ``eos`` is part of a turn.
        """
        if self.chat_template is None:
            raise ConfigError("chat_template", None, "this model was not made for conversations")
        said = [char for char in PRIVATE if char not in self.chat_template][:4]
        roles = ("user", "assistant", "user", "assistant")
        messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
        pieces = re.split("|".join(said), text := self._render(messages, False))
        alike = re.findall("|".join(said), text) == said and pieces[2].startswith(pieces[4])
        remedy = "turns that depend on what was said before are not supported"
        checks.require(alike, "chat_template", self.chat_template[:40], remedy)
        before = pieces[2].removeprefix(pieces[4])
        parts = [self._with_special(part, said[0]) for part in (before, *pieces[3:])]
        if parts[0][:1] == [self.bos]:  # it begins every text anyway
            parts[0] = parts[0][1:]
        special = [i for i, token in enumerate(parts[2]) if token in self.special.values()]
        if special:  # what comes behind belongs to no answer: a line break before the next turn
            parts[2] = parts[2][: special[0] + 1]
        turns = Turns(*map(tuple, parts))
        spoken = {*turns.before, *turns.between, *turns.end}
        remedy = "ends a turn, not a text: use the model's end-of-text token"
        checks.require(eos not in spoken, "model.eos", eos, remedy)
        return dataclasses.replace(self, eos=eos, turns=turns)

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        names = {n: self.bpe.id_to_token(getattr(self, n)) or "" for n in ("bos", "eos", "pad")}
        return render(self.chat_template or "", messages, add_generation_prompt, names)

    def _with_special(self, text: str, mark: str) -> list[int]:
        """Tokens of a text in which special tokens are special, those with a ``mark`` excepted."""
        parts = re.split(f"({'|'.join(self._spellings)})", text) if self._spellings else [text]
        texts = self._encode([part.replace(mark, "") for part in parts[::2]])
        out = list(texts[0])
        for name, tokens in zip(parts[1::2], texts[1:], strict=True):
            out += [self.special[name], *tokens]
        return out

    @functools.cached_property
    def _spellings(self) -> list[str]:
        """Patterns of the special tokens; one that begins with another comes before it."""
        return [re.escape(name) for name in sorted(self.special, key=len, reverse=True)]

    def _hide(self, text: str, mark: str) -> str:
        for name in self.special:
            text = text.replace(name, name[0] + mark + name[1:])
        return text

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in self.bpe.encode_batch(list(texts), add_special_tokens=False)]
