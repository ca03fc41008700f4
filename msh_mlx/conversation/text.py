"""Turn SentencePiece tokens into text, and text into words with their times."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Collection
from dataclasses import asdict

import sentencepiece

from ..errors import InputError
from ..events import Word
from ..system.inputs import read_small
from ..system.places import user_path

# In bytes. The published tokenizer has half a megabyte.
_MAX_SIZE = 1 << 26

_SPACE = "\u2581"  # SentencePiece's sign for a space inside a piece


def load_tokenizer(path: str | os.PathLike[str]) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model.

    Raises
    ------
    InputError
        The file cannot be read, or is not a SentencePiece model.
    """
    path = user_path(path)
    proto = read_small(path, "The tokenizer", _MAX_SIZE)
    tokenizer = sentencepiece.SentencePieceProcessor()
    try:
        if not proto:
            raise ValueError("empty")
        tokenizer.LoadFromSerializedProto(proto)
        for token in range(tokenizer.GetPieceSize()):  # SentencePiece does not look at what the pieces hold
            piece = tokenizer.IdToPiece(token)
            if tokenizer.IsByte(token):
                bytes([int(piece[3:-1], 16)])
    except (RuntimeError, ValueError):
        raise InputError(f"The tokenizer {path} is not a SentencePiece model", "fetch the file again") from None
    return tokenizer


def check_vocabulary(tokenizer: sentencepiece.SentencePieceProcessor, text_card: int) -> None:
    """Check that a tokenizer has as many pieces as the model has text tokens, `text_card`.

    Raises
    ------
    InputError
        It has another number of pieces.
    """
    if tokenizer.GetPieceSize() != text_card:
        raise InputError(
            f"The tokenizer has {tokenizer.GetPieceSize()} pieces and the model {text_card}", "give the model's own"
        )


def word_starts(tokenizer: sentencepiece.SentencePieceProcessor) -> frozenset[int]:
    """Return the tokens that start a word: their text begins with a space."""
    return frozenset(i for i in range(tokenizer.GetPieceSize()) if tokenizer.IdToPiece(i).startswith(_SPACE))


class TextStream:
    """Turns tokens into text, one at a time.

    Byte pieces (such as `<0xE2>`) are collected until they form a character; bytes that form none become U+FFFD. Padding and
    control tokens have no text.
    """

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, padding_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._silent = frozenset(padding_ids)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take a token and return the text that it completes, or ""."""
        if token in self._silent or self._tokenizer.IsControl(token):
            return ""
        piece: str = self._tokenizer.IdToPiece(token)
        if self._tokenizer.IsByte(token):
            return self._utf8.decode(bytes([int(piece[3:-1], 16)]))
        return self.flush() + piece.replace(_SPACE, " ")

    def flush(self) -> str:
        """Return U+FFFD for an incomplete character, or "" if there is none, and forget its bytes."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Words:
    """Puts pieces of text together into words. A space starts a new word; times are rounded to milliseconds."""

    def __init__(self) -> None:
        self._start = 0.0
        self._text = ""

    def push(self, time: float, text: str) -> list[Word]:
        """Take the text that came at `time`, in seconds, and return the words that it completes."""
        done: list[Word] = []
        for character in text:
            if character.isspace():
                done += self.flush()
                continue
            if not self._text:
                self._start = round(time, 3)  # without the noise of binary fractions
            self._text += character
        return done

    def flush(self) -> list[Word]:
        """Return the word that is not complete yet, if there is one, and begin a new one."""
        done = [Word(self._start, self._text)] if self._text else []
        self._text = ""
        return done


def transcript_line(word: Word, **more: str) -> bytes:
    """Return a word as a line of a transcript: a JSON object with `start`, `text`, and what else there is."""
    return json.dumps({**asdict(word), **more}, ensure_ascii=False).encode() + b"\n"
