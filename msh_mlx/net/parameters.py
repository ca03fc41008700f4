"""The parameters in the address of a conversation, and the metadata with which a server describes itself."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import ProtocolError
from ..model.ranges import PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, Range
from ..system.words import shortened
from .messages import MetaData

# Numbers as JavaScript and Rust write them. Python would also accept spaces, underscores and digits of other alphabets.
_WHOLE = re.compile(r"[0-9]{1,20}")
_DECIMAL = re.compile(r"-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")

PROMPT_LENGTH = 1000  # characters, as in the page of PersonaPlex


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise _wrong(name, text, f"a whole number from {least} to {most}")
        return int(text)

    return read


def _number(values: Range) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        value = float(text) if _DECIMAL.fullmatch(text) else math.nan
        if not values.has(value):
            raise _wrong(name, text, str(values))
        return value

    return read


def _words(name: str, text: str) -> str:
    if len(text) > 1000 or not text.isprintable():
        raise ProtocolError(f"The parameter {name} is not a text of up to 1000 printable characters.")
    return text


def read_role(name: str, text: str) -> str | None:
    """Read a text of people, who may use lines; white space of any kind becomes a space, and white space alone is no text."""
    text = " ".join(text.split())
    if len(text) > PROMPT_LENGTH or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise ProtocolError(
            f"The parameter {name} is not a text of up to {PROMPT_LENGTH} characters without control characters."
        )
    return text or None


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise _wrong(name, text, "0 or 1")
    return text == "1"


def _wrong(name: str, text: str, what: str) -> ProtocolError:
    value = f"is {text!r}" if len(text) <= 40 and text.isprintable() else "has another value"
    return ProtocolError(f"The parameter {name} {value}", f"{what} is expected")


def _parameter(default: Any, read: Callable[[str, str], Any]) -> Any:
    """Return a field of `ChatParameters`; `read` checks its text in an address, and makes the value of it."""
    return field(default=default, metadata={"read": read})


_temperature = _number(TEMPERATURE)
_top_k = _whole(0, (1 << 31) - 1)
_seed = _whole(0, (1 << 64) - 1)


@dataclass(frozen=True)
class ChatParameters:
    """The parameters in the address of a conversation; the defaults are the published Rust server's."""

    text_temperature: float = _parameter(0.8, _temperature)  # as `Sampler` takes it
    text_topk: int = _parameter(250, _top_k)  # with 0 all tokens can be chosen
    audio_temperature: float = _parameter(0.8, _temperature)
    audio_topk: int = _parameter(250, _top_k)
    max_steps: int | None = _parameter(4500, _whole(1, (1 << 31) - 1))  # of 80 ms; None sets no limit
    text_seed: int | None = _parameter(None, _seed)  # with None, every conversation has a new seed
    audio_seed: int | None = _parameter(None, _seed)
    pad_mult: float | None = _parameter(None, _number(PADDING_BONUS))  # is added to the logit of padding
    # How many text tokens the penalty looks back, and its factor; None means no penalty.
    repetition_penalty_context: int | None = _parameter(None, _whole(0, 10_000))
    repetition_penalty: float | None = _parameter(None, _number(REPETITION_PENALTY))
    email: str | None = _parameter(None, _words)  # who the client is
    worker_auth_id: str | None = _parameter(None, _words)  # the token that admits it
    # Our addition. False: the sound comes from a file, so none of it is dropped, and the server takes the time that it needs.
    realtime: bool = _parameter(True, _flag)
    # Our addition. True: the client understands metadata that published servers do not send, which are its place in line,
    # figures every two seconds, and the parameters that are ignored.
    stats: bool = _parameter(False, _flag)
    # For models that are told who they are: the name of a voice, and a role in words. None: as the server was told.
    voice_prompt: str | None = _parameter(None, _words)
    text_prompt: str | None = _parameter(None, read_role)

    @classmethod
    def from_query(
        cls, query: Mapping[str, str], defaults: ChatParameters | None = None, without: Collection[str] = ()
    ) -> ChatParameters:
        """Read the parameters of an address, percent-decoded.

        A parameter that is missing or empty is as in `defaults`. Unknown ones are ignored, since published pages send some, and
        those named in `without`, which mean nothing to the model; `unknown_parameters` lists them.

        Raises
        ------
        ProtocolError
            A value is wrong; the sentence names the parameter.
        """
        given = {
            each.name: each.metadata["read"](each.name, text)
            for each in fields(cls)
            if each.name not in without and (text := query.get(each.name))
        }
        return replace(defaults or cls(), **given)


def unknown_parameters(query: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """Return the names of the parameters that are ignored here, shortened for display, each once and 20 at most.

    `without` are those of `ChatParameters` that mean nothing to the model.
    """
    known = {each.name for each in fields(ChatParameters)} - set(without)
    return list(dict.fromkeys(shortened(name, 40) for name in query if name not in known))[:20]


# Without any of these keys the published page shows nothing.
BUILD_KEYS = (
    "build_timestamp",
    "build_date",
    "git_branch",
    "git_timestamp",
    "git_date",
    "git_hash",
    "git_describe",
    "rustc_host_triple",
    "rustc_version",
    "cargo_target_triple",
)


def describe_server(
    parameters: ChatParameters, lm_model_file: str, mimi_model_file: str, instance_name: str
) -> MetaData:
    """Return the metadata that the published page shows.

    The page needs numbers everywhere: without a padding bonus it gets 0, without a penalty the factor 1 over 0 tokens.
    """
    penalty = parameters.repetition_penalty
    return MetaData(
        {
            "text_temperature": parameters.text_temperature,
            "text_topk": parameters.text_topk,
            "audio_temperature": parameters.audio_temperature,
            "audio_topk": parameters.audio_topk,
            "pad_mult": parameters.pad_mult or 0.0,
            "repetition_penalty_context": parameters.repetition_penalty_context or 0,
            "repetition_penalty": 1.0 if penalty is None else penalty,
            "lm_model_file": lm_model_file,
            "mimi_model_file": mimi_model_file,
            "instance_name": instance_name,
            "build_info": dict.fromkeys(BUILD_KEYS, "unknown"),
        }
    )
