"""Load a session from the files of a model, or replace a model that is too slow here by a lighter one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..events import Event
    from ..library.files import ModelFiles
    from ..library.suited import Selection
    from ..weights.checkpoint import Checkpoint
    from .session import Opening, Parts, Session
    from .warmup import Lighter, Load

_BEGINNING = 1 << 20  # bytes: the header, and some of the weights


def load_session(
    files: ModelFiles,
    checkpoint: Checkpoint | None = None,
    *,
    voice: Mapping[str, Any],
    text: Mapping[str, Any],
    seed: int | None,
    kv_bits: int | None = None,
    engine: str = "auto",
    codec_weights: str = "float32",
    opening: Callable[[Parts], Opening] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Session:
    """Load a model with its codec and tokenizer; small files are loaded first.

    `checkpoint` is the checked file of the model, with its adapters; without one, the model's file is opened here with the
    configuration of `files`. `voice` and `text` are the arguments of `Sampler` and `TextSampler`; `opening` makes the session's
    opening of what was loaded; `codec_weights` is how the codec's are held, as for `load_mimi`; the others are as for `load_lm`
    and `Session`.

    Raises
    ------
    InputError
        A file or a value is wrong, or the files do not belong together.
    """
    from ..model.sampling import Sampler, TextSampler
    from .session import Session

    samplers = {"audio_sampler": Sampler(**voice), "text_sampler": TextSampler(**text)}
    parts = load_parts(files, checkpoint, engine=engine, codec_weights=codec_weights, progress=progress)
    begin = opening(parts) if opening else None
    return Session(parts.lm, parts.mimi, parts.tokenizer, **samplers, seed=seed, kv_bits=kv_bits, opening=begin)


def load_parts(
    files: ModelFiles,
    checkpoint: Checkpoint | None = None,
    *,
    engine: str = "auto",
    codec_weights: str = "float32",
    progress: Callable[[float], None] | None = None,
) -> Parts:
    """Load the parts that sessions share; arguments and errors are those of `load_session`."""
    from ..model.engines import prepare
    from ..weights.checkpoint import open_checkpoint
    from ..weights.load import load
    from .codec import load_mimi
    from .session import Parts
    from .text import check_vocabulary, load_tokenizer

    engine = prepare(engine)
    tokenizer = load_tokenizer(files.tokenizer)
    # The model's header is checked first and the vocabulary next, before gigabytes of weights are read.
    checkpoint = checkpoint or open_checkpoint(files.model, files.config)
    config = checkpoint.config
    check_vocabulary(tokenizer, config.text_card)
    mimi = load_mimi(files.mimi, num_codebooks=max(config.dep_q, config.user_q), weights=codec_weights)
    lm = load(checkpoint, engine, progress=progress)
    return Parts(lm, mimi, tokenizer, "/".join(files.model.parts[-2:]), _identity(checkpoint, files.mimi, mimi.weights))


def _identity(checkpoint: Checkpoint, mimi: Path, codec_weights: str) -> str:
    """Return what changes when the weights of model or codec do: a hash of sizes, times, and the beginnings of the files."""
    digest = hashlib.sha256(json.dumps(checkpoint.config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(f"{checkpoint.scaling and checkpoint.scaling.value} {codec_weights} ".encode())
    for path in filter(None, (checkpoint.path, mimi, checkpoint.lora)):
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_BEGINNING))
    return digest.hexdigest()


def on_trial(selection: Selection, demo: Callable[..., Session] | None, events: Callable[[Event], None]) -> Lighter:
    """Return a function for `warm` that keeps the chosen model if it was fast enough on trial.

    Else the function returns `demo`, which makes a session of the demo model; None: it raises `MshError`.
    """
    from ..errors import MshError
    from ..events import Notice
    from ..format import FRAME_SECONDS

    def judge(longest: float) -> Load | None:
        if longest <= FRAME_SECONDS:
            return None
        name = selection.entry.name
        what = (
            f"{name} is too slow here: after minutes of conversation one frame in twenty takes "
            f"{1000 * longest:.0f} ms or more, and a frame lasts 80 ms"
        )
        if demo is None:
            raise MshError(
                what, f"shorten its window with --context, talk all the same with --variant {name}, or try --demo"
            )
        events(Notice("lighter", f"{what}; taking the demo model.", "warning"))
        return lambda progress: demo(progress=progress)

    return judge


def step_down(
    selection: Selection,
    open_model: Callable[..., Checkpoint],
    load: Callable[..., Session],
    events: Callable[[Event], None],
) -> Lighter:
    """Return a function for `warm` that replaces the chosen model by the next lighter one, as long as it is too slow here.

    `selection` is the model that was chosen, with the models that could replace it. `open_model` opens a model's file with its
    configuration, as `open_checkpoint` does. `load` makes a session from files, a checkpoint and `progress`, as `load_session`
    does. `events` is called with a `Notice` for each step down, and with the `ModelInUse` of the new model.
    """
    from ..events import ModelInUse, Notice
    from ..library.cache import Watch
    from ..library.suited import SLOW, obtain

    current: Selection | None = selection

    def lighter(pace: float) -> Load | None:
        nonlocal current
        slow = current
        if slow is None or pace <= SLOW:
            return None
        current = instead = slow.lighter()
        steps = f"three steps in four take {1000 * pace:.0f} ms or more, and a frame lasts 80 ms"
        said = f"{slow.entry.name} is too slow here: {steps}"
        if instead is None:
            events(Notice("slow", f"{said}. There is no lighter model; close other programs.", "warning"))
            return None
        events(Notice("lighter", f"{said}; taking {instead.entry.name}.", "warning"))

        def load_instead(progress: Callable[[float], None]) -> Session:
            watch = Watch(
                lambda done, total: progress(done / total), lambda sentence: events(Notice("fetch", sentence))
            )
            files = obtain(instead.entry, instead.entries, watch)
            checkpoint = open_model(files.model, files.config)
            events(ModelInUse(checkpoint.bits))
            return load(files, checkpoint, progress=progress)

        return load_instead

    return lighter
