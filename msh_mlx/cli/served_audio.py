"""What `msh-mlx serve` has besides conversations: transcription, speech, and their options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..library.files import MIMIS
from ..system.places import user_path
from ..system.signals import Signals
from ..system.words import listed
from .choice import Choice, choose
from .options import Group, computing, whole
from .speech import as_model_takes, find_voices, read_voice

if TYPE_CHECKING:
    from ..conversation.session import Parts
    from ..conversation.shared_speaker import SharedSpeaker, Voices
    from ..conversation.shared_transcriber import SharedTranscriber
    from ..conversation.speaker import Speaker
    from .display import Display

WYOMING_PORT = 10300
_NONE, _DEMO = "none", "demo"
_OWN_VOICE = "default"  # the name of a model's own voice, where no other was chosen
_ROWS = 4


def add_audio(to: Group) -> None:
    """Add the options."""
    named = "its name in the catalogue, a file, a folder, hf:OWNER/NAME/FILE[@REVISION], or demo"
    stt = f"also write down recordings (/v1/audio/transcriptions) with this model: {named}"
    to.value(
        "--stt",
        "MODEL",
        f"{stt}; none is none (default: none; with --demo, the demo model; with --llm, one that suits)",
    )
    many = f"hear up to N recordings and streams at once (default: {_ROWS})"
    to.value("--stt-rows", "N", many, type=whole(1, 65), default=_ROWS)
    to.value("--tts", "MODEL", "also say texts (/v1/audio/speech) with this model, named in the same way")
    voice = "say texts with this voice, if a client names none: its name, or a file (default: the model's own)"
    to.value("--tts-voice", "VOICE", voice)
    to.flag("--no-conversations", "hold no conversations, and load no model for them")
    where = f"also speak the Wyoming protocol, for Home Assistant, on this address (default: --host, {WYOMING_PORT})"
    to.value("--wyoming", "[HOST:]PORT", where, nargs="?", const=str(WYOMING_PORT))


def check_audio(args: argparse.Namespace) -> None:
    """Check the options together, and replace them by what they mean; raise InputError if they do not fit."""
    check_named(args)
    for name in ("stt", "tts"):
        if getattr(args, name) == _NONE:
            setattr(args, name, None)
    if args.tts_voice is not None and not _wants(args, args.tts):
        raise InputError("--tts-voice is for a model that speaks", "give one with --tts")
    if args.no_conversations and not (args.stt or args.tts):
        raise InputError("--no-conversations leaves nothing to serve", "give --stt or --tts")
    if args.wyoming is not None:
        if not (_wants(args, args.stt) or _wants(args, args.tts)):
            raise InputError("--wyoming has nothing to serve", "give --stt or --tts")
        args.wyoming = wyoming_address(args.wyoming, args.host)
        _check_package()


def _wants(args: argparse.Namespace, model: str | None) -> bool:
    """Tell whether a model is wanted: it is named, or a conversation with a language model needs one."""
    return bool(model) or args.llm is not None


def check_named(args: argparse.Namespace) -> None:
    """Check the names of the models that hear and speak; with --demo the default is the demo model."""
    for name in ("stt", "tts"):
        text = getattr(args, name)
        if text == "":
            raise InputError(f"--{name} is empty", "give a model")
        if text is None and args.demo:
            setattr(args, name, _DEMO)


def wyoming_address(text: str, host: str) -> tuple[str, int]:
    """Read an address such as 10300, 0.0.0.0:10300 or [::]:10300; without a host, it is `host`."""
    match = re.fullmatch(r"(?:(?:\[([^\[\]]+)\]|([^:\[\]]+)):)?([0-9]{1,5})", text)
    if not match or int(match[3]) >= 1 << 16:
        raise InputError(f"--wyoming {text} is not an address", f"give one like 0.0.0.0:{WYOMING_PORT}")
    return match[1] or match[2] or host, int(match[3])


def _check_package() -> None:
    """Raise InputError if a package is missing that only --wyoming needs."""
    if not all(map(find_spec, ("wyoming", "zeroconf"))):
        raise InputError(
            "--wyoming needs the packages wyoming and zeroconf", "install them: pip install 'msh-mlx[wyoming]'"
        )


# ---- choosing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AudioChoice:
    """The chosen models; None: there is none. `voices` are files of voices by their names; the first is the usual one."""

    args: argparse.Namespace
    stt: Choice | None = None
    tts: Choice | None = None
    voices: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, str]:
        """The names of both models, for clients."""
        return _name(self.stt, "stt"), _name(self.tts, "tts")

    @property
    def languages(self) -> tuple[list[str], list[str]]:
        """The languages of both models, as far as their names tell."""
        stt, tts = (_languages(name) for name in self.names)
        return stt, tts

    def load_stt(self, shared: SharedTranscriber, shown: Display) -> None:
        if self.stt:
            choice = self.stt
            with shown.progress(f"Loading {choice.files.model.name}") as progress:
                shared.load(partial(_load, self.args, choice, progress))

    def stt_parts(self, progress: Callable[[float], None]) -> Parts:
        """Load the model that hears."""
        assert self.stt
        return _load(self.args, self.stt, progress)

    def speaker(self, progress: Callable[[float], None]) -> Speaker:
        """Load the model that speaks, with the usual voice."""
        assert self.tts
        voices = self._voices(_load(self.args, self.tts, progress))
        return voices.speakers[voices.default]

    def load_tts(self, shared: SharedSpeaker, shown: Display) -> None:
        if self.tts:
            choice = self.tts
            with shown.progress(f"Loading {choice.files.model.name}") as progress:
                shared.load(lambda: self._voices(_load(self.args, choice, progress)))

    def _voices(self, parts: Parts) -> Voices:
        from ..conversation.shared_speaker import Voices
        from ..conversation.speaker import Speaker

        speakers = {}
        for name, voice in self.voices.items():
            given = [] if voice is None else [as_model_takes(voice, parts)]
            speakers[name] = Speaker(parts.lm, parts.mimi, parts.tokenizer, voices=given, kv_bits=self.args.kv_bits)
        return Voices(speakers, next(iter(speakers)))


NO_AUDIO = AudioChoice(argparse.Namespace())


def choose_audio(args: argparse.Namespace, signals: Signals) -> AudioChoice:
    """Find the models that the options ask for, and fetch missing files; errors are those of `choose`."""
    stt = (
        choose(other_options(args, args.stt, args.stt_rows), signals, ("transcription",), in_time=False)
        if _wants(args, args.stt)
        else None
    )
    tts, voices = None, {}
    if _wants(args, args.tts):
        from ..library.speech_voices import voices_beside

        options = other_options(args, args.tts, 1)
        tts = choose(options, signals, ("speech",), in_time=False)
        named = [] if args.tts_voice is None else [args.tts_voice]
        beside = voices_beside(tts.files.model)
        for path in find_voices(named, options, tts, signals):
            name = next((name for name, other in beside.items() if other.samefile(path)), args.tts_voice or _OWN_VOICE)
            voices[_short(name)] = read_voice(path, tts)
        if not voices:
            voices[_OWN_VOICE] = None
        voices = voices | {name: read_voice(path, tts) for name, path in beside.items() if name not in voices}
    return AudioChoice(args, stt, tts, voices)


def _short(name: str) -> str:
    """Return the name of a voice that was named as a file, without its folder and ending."""
    return Path(name).name.removesuffix(".safetensors") if user_path(name).is_file() else name


def other_options(args: argparse.Namespace, model: str | None, rows: int) -> argparse.Namespace:
    """Return the options by which `choose` finds another model than that of the usual options; None: the one that suits."""
    from ..library.suited import load_library

    asked: dict[str, Any] = {"model": None, "variant": None, "demo": model == _DEMO}
    if model and not asked["demo"]:
        asked["variant" if model in load_library(args.weights) else "model"] = model
    if model and asked["model"] and (folder := user_path(model)).is_dir():
        asked["model"] = str(_model_in(folder))
    unasked = dict.fromkeys(("hf_repo", "mimi", "tokenizer", "config", "quantized", "context"))
    same = {name: getattr(args, name) for name in ("weights", "plain", "engine", "kv_bits", "codec_weights")}
    return argparse.Namespace(**asked, **unasked, **same, sessions=rows)


def _model_in(folder: Path) -> Path:
    """Return the model's file in a folder."""
    files = [path for path in sorted(folder.glob("*.safetensors")) if not any(path.match(form) for form in MIMIS)]
    named = [path for path in files if path.name.startswith("model")] or files
    if len(named) != 1:
        found = f"{len(named)} models ({listed(path.name for path in named)})" if named else "no model (.safetensors)"
        raise InputError(f"{folder} has {found}", "name the file")
    return named[0]


def _load(args: argparse.Namespace, choice: Choice, progress: Any) -> Parts:
    from ..conversation.load import load_parts

    return load_parts(choice.files, choice.checkpoint, **computing(args), progress=progress)


def _name(choice: Choice | None, use: str) -> str:
    """Return the name of a model for clients: the catalogue's, else that of its file, or of the folder if that says more."""
    if choice is None:
        return ""
    return f"demo-{use}" if choice.is_demo else model_name(choice)


def model_name(choice: Choice) -> str:
    """Return the name of a model that a user chose: the catalogue's, or that of its file or folder."""
    if choice.is_demo:
        return _DEMO
    path = choice.files.model
    if not choice.name.endswith(path.name):
        return choice.name
    return path.parent.resolve().name if path.stem in ("model", "model.q8", "model.q4") else path.stem


def _languages(name: str) -> list[str]:
    """Return the languages that the name of a published model ends with, such as those of `stt-1b-en_fr-mlx`; else English."""
    match = re.search(r"-([a-z]{2}(?:_[a-z]{2})*)(?:-|$)", name)
    return match[1].split("_") if match else ["en"]


def wyoming_name(name: str, host: str, port: int) -> str:
    """Return the name under which a server is announced on the network; each port has another."""
    more = "" if port == WYOMING_PORT else f" {port}"
    return re.sub(r"[^\w -]", "-", f"{name} on {host}", flags=re.ASCII)[:50] + more
