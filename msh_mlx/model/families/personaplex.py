"""PersonaPlex: Moshi with a voice and a role, given as frames before the conversation.

Its depformer goes on to the user's codes. Nothing that is heard or said depends on them, so this half is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..architecture import SCHEDULE, wrong
from ..grid import NOTHING, Column, Prompt, Streams
from ..ranges import is_whole

if TYPE_CHECKING:
    from ..architecture import Architecture

NAME = "personaplex"
TITLE = "a Moshi with a voice and a role (PersonaPlex)"

SILENT_FRAMES = 6
# The codes of a frame of silence, and of a sine of 440 Hz with amplitude 0.5, by the published codec.
SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)


def known(config: Architecture) -> bool:
    """Tell whether a configuration is of this family: it says so, or the model predicts the user's codes, too."""
    said = (config.model_type or "").lower().startswith("personaplex") or config.prompt_codes is not None
    return said or (config.dep_q == config.n_q and config.n_q % 2 == 0)


def adapted(config: Architecture) -> Architecture:
    """Leave the depformer's second half out, if it is there.

    Raises
    ------
    InputError
        The configuration's codes of silence and sine are not understood.
    """
    if config.dep_q == config.n_q:
        if config.schedule:
            raise wrong(SCHEDULE, config.schedule, "null")
        config = replace(config, dep_q=config.n_q // 2, model_type=config.model_type or NAME)
    if config.prompt_codes is not None:
        prompt_codes(config)
    return config


def prompt_codes(config: Architecture) -> tuple[Column, Column]:
    """Return the codes of silence and of the sine that fill a prompt, each `[own]`."""
    values = config.prompt_codes or {"silence": list(SILENCE[: config.dep_q]), "sine": list(SINE[: config.dep_q])}
    found = []
    for name in ("silence", "sine"):
        codes: Any = values.get(name)
        if (
            not isinstance(codes, list)
            or len(codes) != config.dep_q
            or not all(is_whole(c) and 0 <= c < config.card for c in codes)
        ):
            has = "no" if config.prompt_codes is None else "wrong"
            raise InputError(
                f"The model's configuration has {has} prompt_codes for {name}", f"{config.dep_q} codes are expected"
            )
        found.append(np.array(codes, np.int32))
    return found[0], found[1]


def no_persona(name: str, title: str) -> InputError:
    """Make the error for a model that takes neither a voice nor a role: its name, and the title of its family."""
    return InputError(
        f"{name} is {title}, which takes neither a voice nor a role",
        "choose a PersonaPlex model ('msh-mlx models' lists them), or try --demo",
    )


@dataclass(frozen=True)
class Voice:
    """A voice in NVIDIA's form.

    `embedded`, `[frames − 1, dim]`, are the model's inputs at all positions of the voice but the last one's. `columns` are the
    newest four columns then, as a ring: column c is `columns[:, c mod 4]`.
    """

    embedded: npt.NDArray[np.float32]
    columns: npt.NDArray[np.integer]

    @property
    def frames(self) -> int:
        """How many frames the voice takes."""
        return len(self.embedded) + 1


def check_voice(voice: Voice, config: Architecture) -> None:
    """Check that a voice in NVIDIA's form fits a model.

    Raises
    ------
    InputError
        It was made for a model of another width, or with other codebooks.
    """
    dim, rows = voice.embedded.shape[1], len(voice.columns)
    if dim != config.dim or rows != len(config.delays):
        raise InputError(
            f"The voice was made for a model of width {dim} with {rows} streams, and this one has {config.dim} and "
            f"{len(config.delays)}",
            "give a voice of this model, or a recording",
        )
    starts = np.array([config.text_card] + [config.card] * config.n_q)
    last, delayed = voice.frames - 1, np.array(config.delays) > 0
    read = np.where(delayed, voice.columns[:, (last + 1) % 4], NOTHING), voice.columns[:, last % 4]
    if any(((column < NOTHING) | (column > starts)).any() for column in read):  # nothing else in the ring counts
        raise InputError("The voice has tokens that the model does not know", "give a voice of this model")


def prompt_for(
    config: Architecture, voice: npt.NDArray[np.integer] | Voice | None = None, text: Sequence[int] = ()
) -> Prompt:
    """Make a prompt, as `prompt` does, for a model. Without a voice and a text it is silence."""
    silence, sine = prompt_codes(config)
    return prompt(config.streams, config.existing_text_padding_id, silence, sine, voice=voice, text=text)


def prompt(
    streams: Streams,
    padding: int,
    silence: Column,
    sine: Column,
    *,
    voice: npt.NDArray[np.integer] | Voice | None = None,
    text: Sequence[int] = (),
) -> Prompt:
    """Make the prompt of a voice, as codes `[own, frames]` or in NVIDIA's form, and of a text, with silence around it.

    The first frame of a prompt is lost, as in NVIDIA's program: frame j begins in column j, and column 0 is "start".
    """
    if isinstance(voice, Voice):
        voices = [(padding, silence)] * voice.frames  # of which nothing stays
    else:
        voices = [] if voice is None else [(padding, codes) for codes in np.asarray(voice).T]
    between = [(padding, silence)] * SILENT_FRAMES
    frames = [*voices, *between, *((token, silence) for token in text), *between]
    columns = np.full((len(frames) + streams.max_delay, len(streams.delays)), streams.start, np.int32)
    columns[:, 0] = streams.text_start
    for j, (token, own) in enumerate(frames):
        cells = np.concatenate([[token], own, sine])
        for row, delay in enumerate(streams.delays):
            if j:
                columns[j + delay, row] = cells[row]
    if not isinstance(voice, Voice):
        return Prompt(streams.opened(columns))
    last = voice.frames - 1
    columns[last] = voice.columns[:, last % 4]
    delayed = np.array(streams.delays) > 0
    columns[last + 1, delayed] = voice.columns[delayed, (last + 1) % 4]
    return Prompt(streams.opened(columns), voice.embedded)
