"""The parameters in the address of a conversation, and the metadata with which a server describes itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ProtocolError
from ..model.ranges import PADDING_BONUS, REPETITION_PENALTY, TEMPERATURE, Range
from ..system.words import shortened
from .messages import MetaData


@dataclass(frozen=True)
class ChatParameters:
    """The parameters in the address of a conversation; the defaults are the published Rust server's.

    Attributes
    ----------
    text_temperature, audio_temperature
        From 0 to 1e9, as `Sampler` takes them.
    text_topk, audio_topk
        At least 0; with 0 all tokens can be chosen.
    max_steps
        The most steps of 80 ms, at least 1. None sets no limit.
    text_seed, audio_seed
        In [0, 2^64). With None, every conversation has a new seed.
    pad_mult
        What is added to the logit of padding, from -1e9 to 1e9. None adds nothing.
    repetition_penalty_context, repetition_penalty
        How many text tokens the penalty looks back, and its factor, from 1e-9 to 1e9. None means no penalty.
    email, worker_auth_id
        Who the client is, and the token that admits it.
    realtime
        Our addition. False: the sound comes from a file, so none of it is dropped, and the server takes the time that it needs.
    stats
        Our addition. True: the client understands metadata that published servers do not send, which are its place in line,
        figures every two seconds, and the parameters that are ignored.
    """

    text_temperature: float = 0.8
    text_topk: int = 250
    audio_temperature: float = 0.8
    audio_topk: int = 250
    max_steps: int | None = 4500
    text_seed: int | None = None
    audio_seed: int | None = None
    pad_mult: float | None = None
    repetition_penalty_context: int | None = None
    repetition_penalty: float | None = None
    email: str | None = None
    worker_auth_id: str | None = None
    realtime: bool = True
    stats: bool = False

    @classmethod
    def from_query(cls, query: Mapping[str, str], defaults: ChatParameters | None = None) -> ChatParameters:
        """Read the parameters of an address, percent-decoded.

        A parameter that is missing or empty is as in `defaults`. Unknown ones are ignored, since published pages send some;
        `unknown_parameters` lists them.

        Raises
        ------
        ProtocolError
            A value is wrong; the sentence names the parameter.
        """
        values: dict[str, Any] = {} if defaults is None else dict(vars(defaults))
        for name, read in _PARAMETERS.items():
            text = query.get(name, "")
            if text:
                values[name] = read(name, text)
        return cls(**values)


# Numbers as JavaScript and Rust write them. Python would also accept spaces, underscores and digits of other alphabets.
_WHOLE = re.compile(r"[0-9]{1,20}")
_DECIMAL = re.compile(r"-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")


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


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise _wrong(name, text, "0 or 1")
    return text == "1"


def _wrong(name: str, text: str, what: str) -> ProtocolError:
    value = f"is {text!r}" if len(text) <= 40 and text.isprintable() else "has another value"
    return ProtocolError(f"The parameter {name} {value}; {what} is expected.")


_temperature = _number(TEMPERATURE)
_top_k = _whole(0, (1 << 31) - 1)
_seed = _whole(0, (1 << 64) - 1)
_PARAMETERS: dict[str, Callable[[str, str], Any]] = {
    "text_temperature": _temperature,
    "text_topk": _top_k,
    "audio_temperature": _temperature,
    "audio_topk": _top_k,
    "max_steps": _whole(1, (1 << 31) - 1),
    "text_seed": _seed,
    "audio_seed": _seed,
    "pad_mult": _number(PADDING_BONUS),
    "repetition_penalty_context": _whole(0, 10_000),
    "repetition_penalty": _number(REPETITION_PENALTY),
    "email": _words,
    "worker_auth_id": _words,
    "realtime": _flag,
    "stats": _flag,
}


def unknown_parameters(query: Iterable[str]) -> list[str]:
    """Return the names of the parameters that are ignored here, shortened for display, each once and 20 at most."""
    return list(dict.fromkeys(shortened(name, 40) for name in query if name not in _PARAMETERS))[:20]


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
