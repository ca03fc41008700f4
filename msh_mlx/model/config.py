"""`LmConfig`: the sizes of a Moshi language model, read from a checkpoint's `config.json`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import InputError
from ..system.inputs import brief, decode_text, read_small
from ..system.places import user_path
from .conditions import Conditioner, Fuser
from .families import family_of
from .grid import Streams
from .ranges import LORA_SCALING, Range, is_whole

# A configuration has about a kilobyte. A much larger file is something else.
_MAX_SIZE = 1 << 20
_FLOAT = Range(1e-9, 1e12)
_MAX_WHOLE = 1 << 24
_NAME = re.compile(r"\w{1,64}")
# Keys for which null means what a missing key means.
_NULL_IS_DEFAULT = (
    "kv_repeat", "positional_embedding", "cross_attention", "demux_second_stream", "extra_heads_num_heads", "extra_heads_dim",
)  # fmt: skip
_SCHEDULE = "depformer_weights_per_step_schedule"
_MAY_BE_ZERO = ("existing_text_padding_id", "dep_q", "extra_heads_num_heads", "extra_heads_dim", "unused_slices")
_SPEECH_TO_TEXT = "a speech-to-text model"

# Keys that change the architecture, with the only value that is implemented here. null means the same value.
_FIXED: dict[str, Any] = {
    "bias_proj": False,
    "causal": True,
    "depformer_gating": "silu",
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "gating": "silu",
    "layer_scale": None,
    "norm": "rms_norm_f32",
    "norm_emb": False,
    "quantize": False,
}

# Keys that do not matter for inference, whatever their values: names of files; settings of training and of other programs;
# parts that are absent because of `_FIXED`; and the depformer's window and rotation, because it sees all of a step's codebooks
# and has no positional embedding.
_IGNORED = frozenset(
    {
        "depformer_causal",
        "depformer_context",
        "depformer_max_period",
        "existing_text_end_padding_id",
        "gradient_checkpointing",
        "lm_gen_config",
        "lora_name",
        "lora_rank",
        "mimi_config_name",
        "mimi_name",
        "model_id",
        "moshi_name",
        "tokenizer_name",
    }
)


@dataclass(frozen=True)
class LmConfig:
    """The architecture of a Moshi language model. The defaults are those of the published v0.1 (Moshiko and Moshika, 7 B).

    Names and values are as in the `config.json` of the published checkpoints. `delays` has `1 + n_q` entries, in steps of
    80 ms: text, the model's own `dep_q` codebooks, the user's `n_q - dep_q` codebooks. `context` counts steps. `lora_scaling`
    is the factor of the adapters that belong to the model; None: the configuration does not say.

    Raises
    ------
    InputError
        A value has the wrong type, is out of range, or does not fit the others.
    """

    dim: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    hidden_scale: float = 4.125
    context: int = 3000
    max_period: float = 10000.0
    text_card: int = 32000
    existing_text_padding_id: int = 3
    card: int = 2048
    n_q: int = 16
    dep_q: int = 8
    delays: tuple[int, ...] = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    depformer_dim: int = 1024
    depformer_num_layers: int = 6
    depformer_num_heads: int = 16
    depformer_dim_feedforward: int = 4224
    lora_scaling: float | None = None
    text_card_out: int | None = None
    kv_repeat: int = 1
    positional_embedding: str = "rope"
    cross_attention: bool = False
    demux_second_stream: bool = False
    depformer_kv_repeat: int | None = None
    depformer_norm: str | None = None
    schedule: tuple[int, ...] | None = None
    depformer_low_rank_embeddings: int | None = None
    extra_heads_num_heads: int = 0
    extra_heads_dim: int = 0
    unused_slices: int = 0
    model_type: str | None = None
    stt_config: Mapping[str, Any] | None = None
    tts_config: Mapping[str, Any] | None = None
    prompt_codes: Mapping[str, Any] | None = None
    conditioners: Mapping[str, Conditioner] = field(default_factory=dict)
    fuser: Fuser = field(default_factory=Fuser)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "delays":
                if not isinstance(value, list | tuple) or not all(is_whole(d) and 0 <= d < 1000 for d in value):
                    raise _wrong(entry.name, value, "a list of whole numbers ≥ 0")
                object.__setattr__(self, "delays", tuple(value))
            elif entry.name == "lora_scaling":
                if value is not None:
                    object.__setattr__(self, entry.name, scaling_in({entry.name: value}, "The model's configuration"))
            elif entry.type == "float":
                if not _FLOAT.has(value):
                    raise _wrong(entry.name, value, str(_FLOAT))
                object.__setattr__(self, entry.name, float(value))
            elif entry.type in ("int", "int | None"):
                least = 0 if entry.name in _MAY_BE_ZERO else 1
                good = is_whole(value) and least <= value <= _MAX_WHOLE
                if not (good or (value is None and entry.type == "int | None")):
                    raise _wrong(entry.name, value, f"a whole number from {least} to 2^24")
            elif entry.type == "bool" and not isinstance(value, bool):
                raise _wrong(entry.name, value, "true or false")
            elif entry.type == "str | None" and value is not None and not isinstance(value, str):
                raise _wrong(entry.name, value, "a text")
            elif entry.type == "Mapping[str, Any] | None" and value is not None and not isinstance(value, Mapping):
                raise _wrong(entry.name, value, "an object")
        if self.positional_embedding not in ("rope", "rope_concat"):
            raise _wrong("positional_embedding", self.positional_embedding, "rope or rope_concat")
        if self.depformer_norm not in (None, "layer_norm"):
            raise _wrong("depformer_norm", self.depformer_norm, "layer_norm or null")
        schedule = self.schedule
        if schedule is not None:
            good = isinstance(schedule, list | tuple) and all(is_whole(s) and s >= 0 for s in schedule)
            if not good or len(schedule) != self.dep_q or (schedule and set(schedule) != set(range(max(schedule) + 1))):
                raise _wrong(_SCHEDULE, schedule, f"a list of {self.dep_q} numbers of slices")
            object.__setattr__(self, "schedule", tuple(schedule))
        self._check_together()

    def _check_together(self) -> None:
        checks = [
            (self.dep_q <= self.n_q, f"dep_q = {self.dep_q} is larger than n_q = {self.n_q}"),
            (len(self.delays) == 1 + self.n_q, f"delays has {len(self.delays)} entries in place of 1 + n_q = {1 + self.n_q}"),
            (self.dim % (2 * self.num_heads) == 0, f"dim = {self.dim} is not an even multiple of num_heads = {self.num_heads}"),
            (
                self.depformer_dim % self.depformer_num_heads == 0,
                f"depformer_dim = {self.depformer_dim} is not a multiple of depformer_num_heads = {self.depformer_num_heads}",
            ),
            (
                self.num_heads % self.kv_repeat == 0,
                f"num_heads = {self.num_heads} is not a multiple of kv_repeat = {self.kv_repeat}",
            ),
            (
                self.depformer_num_heads % self.depformer_group == 0,
                f"depformer_num_heads = {self.depformer_num_heads} is not a multiple of its kv_repeat = {self.depformer_group}",
            ),
            (
                self.existing_text_padding_id < (self.text_card_out or self.text_card),
                "existing_text_padding_id is not below text_card",
            ),
            (set(self.fuser.added + self.fuser.crossed) <= set(self.conditioners), "fuser names a condition that is not there"),
        ]  # fmt: skip
        for good, what in checks:
            if not good:
                raise InputError(f"The model's configuration does not fit together: {what}.")

    @property
    def streams(self) -> Streams:
        """The rows of the token grid."""
        return Streams(self.delays, self.dep_q, self.text_card, self.card)

    @property
    def slices(self) -> tuple[int, ...]:
        """The slice of the depformer's weights that each codebook in the file uses, those that are not run included."""
        return self.schedule or tuple(range(self.dep_q + self.unused_slices))

    @property
    def depformer_group(self) -> int:
        """How many heads of the depformer's queries share a head of keys and values."""
        return self.depformer_kv_repeat or self.kv_repeat

    @property
    def user_q(self) -> int:
        """The number of the user's codebooks."""
        return self.n_q - self.dep_q

    @property
    def max_delay(self) -> int:
        """The largest delay, in steps. The model's own frame f is complete at position f + max_delay."""
        return max(self.delays)

    @property
    def hidden(self) -> int:
        """The width of the temporal feed-forward's inner layer. A checkpoint's shapes take precedence."""
        return _gate_width(int(self.hidden_scale * self.dim), self.dim)

    @property
    def depformer_hidden(self) -> int:
        """The width of the depformer feed-forward's inner layer. A checkpoint's shapes take precedence."""
        return _gate_width(self.depformer_dim_feedforward, self.depformer_dim)

    @property
    def padding_ids(self) -> frozenset[int]:
        """The text tokens without text: `existing_text_padding_id` is padding, and 0 ends padding."""
        return frozenset({0, self.existing_text_padding_id})

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: str = "The model's configuration", *, lora: bool = False
    ) -> LmConfig:
        """Read the keys of a `config.json`. Missing keys have their v0.1 value. `lora` allows a model with adapters.

        Raises
        ------
        InputError
            A key is unknown, or has a value that is not implemented. The message names `source`, and the kind of model if it
            is known.
        """
        try:
            return cls._read(values, source, lora)
        except InputError:
            if (what := other_kind(values)) is None:
                raise
            raise not_run(f"{source} is of", what) from None

    @classmethod
    def _read(cls, values: Mapping[str, Any], source: str, lora: bool) -> LmConfig:
        known = {entry.name for entry in fields(cls)} - {"schedule", "unused_slices"}
        unknown = sorted(set(values) - known - set(_FIXED) - _IGNORED - {"lora", _SCHEDULE})
        if unknown:
            raise InputError(f"{source} has keys that are not known: {_listed(unknown)}.")
        for key, only in _FIXED.items():
            if values.get(key) is not None and values[key] != only:
                raise InputError(f"{source} has {key} = {brief(values[key])}", f"only {only!r} can be run")
        if values.get("lora") not in (None, False, True):
            raise InputError(f"{source} has lora = {brief(values['lora'])}", "true or false is expected")
        if values.get("lora") and not lora:
            raise InputError(f"{source} is of a model with LoRA adapters", "give them with --lora")
        given = {key: value for key, value in values.items() if key in known}
        for key in _NULL_IS_DEFAULT:
            if given.get(key, 0) is None:
                del given[key]
        given["lora_scaling"] = scaling_in(values, source)
        given["schedule"] = values.get(_SCHEDULE)
        given["conditioners"] = _conditioners(values.get("conditioners") or {}, source)
        given["fuser"] = _fuser(values.get("fuser") or {}, source)
        width = given.pop("depformer_dim_feedforward", cls.depformer_dim_feedforward)
        if isinstance(width, list) and width and width.count(width[0]) == len(width):  # of every step
            width = width[0]
        config = cls(**given)
        if width is None:
            width = int(config.hidden_scale * config.depformer_dim)
        config = replace(config, depformer_dim_feedforward=width)
        return family_of(config).adapted(config)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, lora: bool = False) -> LmConfig:
        """Read a `config.json`. `lora` is as for `from_dict`.

        Raises
        ------
        InputError
            The file cannot be read, is not a JSON object, or `from_dict` refuses it.
        """
        return cls.from_dict(read_config(path), f"The configuration {user_path(path)}", lora=lora)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of a `config.json` that gives this configuration: those of every model, and those unlike Moshi's."""
        default = LmConfig()
        always = (
            "dim",
            "num_layers",
            "num_heads",
            "hidden_scale",
            "context",
            "max_period",
            "text_card",
            "existing_text_padding_id",
            "card",
            "n_q",
            "dep_q",
            "delays",
            "depformer_dim",
            "depformer_num_layers",
            "depformer_num_heads",
            "depformer_dim_feedforward",
        )
        values = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name in always or getattr(self, entry.name) != getattr(default, entry.name)
        }
        for key in ("unused_slices", "lora_scaling", "conditioners", "fuser"):
            values.pop(key, None)
        if (schedule := values.pop("schedule", None)) is not None:
            values[_SCHEDULE] = schedule
        if self.unused_slices:
            values["model_type"] = self.model_type or "personaplex"
        if self.conditioners:
            values["conditioners"] = {name: conditioner.to_dict() for name, conditioner in self.conditioners.items()}
            values["fuser"] = self.fuser.to_dict()
        return values

    @classmethod
    def of(
        cls, config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None, *, lora: bool = False
    ) -> LmConfig:
        """Take a configuration in any form: an `LmConfig`, a dict, a path, or None for v0.1. `lora` is as for `from_dict`."""
        if config is None:
            return cls()
        if isinstance(config, LmConfig):
            return config
        if isinstance(config, Mapping):
            return cls.from_dict(config, lora=lora)
        return cls.from_file(config, lora=lora)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `config.json` without checking its keys.

    Raises
    ------
    InputError
        The file cannot be read, is not text, or is not a JSON object.
    """
    path = user_path(path)
    raw = read_small(path, "The configuration", _MAX_SIZE)
    try:
        values = json.loads(decode_text(raw), object_pairs_hook=_distinct)
    except InputError as error:
        raise InputError(f"The configuration {path} {error}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"The configuration {path} is not valid JSON.") from None
    if not isinstance(values, dict):
        raise InputError(f"The configuration {path} is not a JSON object.")
    return values


def scaling_in(values: Mapping[str, Any], source: str) -> float | None:
    """Read the factor that a configuration adds its adapters with; None if it does not say.

    Raises
    ------
    InputError
        The factor is not a number; the message names `source`.
    """
    value = values.get("lora_scaling")
    if value is None or values.get("lora") is False:
        return None
    if not LORA_SCALING.has(value):
        raise InputError(f"{source} has lora_scaling = {brief(value)}", f"{LORA_SCALING} is expected")
    return float(value)


def other_kind(values: Mapping[str, Any]) -> str | None:
    """Name the kind of a model that cannot hold conversations, by its configuration; None if the kind is not known."""

    def says(key: str, kind: str) -> bool:
        return isinstance(text := values.get(key), str) and text.lower().startswith(kind)

    conditioners = values.get("conditioners")
    described = isinstance(conditioners, Mapping) and "description" in conditioners
    if "architectures" in values or "transformers_version" in values:
        return "the Transformers library's own form of a model"
    if says("model_type", "personaplex"):
        return "PersonaPlex, a model that takes a role"
    if says("model_type", "stt") or values.get("stt_config") or values.get("dep_q") == 0:
        return _SPEECH_TO_TEXT
    if says("model_type", "tts") or values.get("tts_config") or values.get("demux_second_stream"):
        return "a text-to-speech model"
    if (
        says("model_type", "hibiki")
        or says("moshi_name", "hibiki")
        or described
        or says("depformer_norm", "layer_norm")
    ):
        return "a speech translation model (Hibiki)"
    if is_whole(values.get("dep_q")) and values.get("dep_q") == values.get("n_q"):
        return "a model that predicts the user's voice, too, as PersonaPlex does"
    return None


def not_run(subject: str, what: str) -> InputError:
    """Make the error for a model of another kind. `subject` is "X is" or "X is of"; `what` is from `other_kind`."""
    return InputError(f"{subject} {what}, which this program does not run", "give a Moshi model")


def _conditioners(values: Any, source: str) -> dict[str, Conditioner]:
    """Read `conditioners`: a table of the values of each ("lut"), or the width of its rows ("tensor")."""
    found = {}
    try:
        for name, entry in values.items():
            of = entry[entry["type"]]
            dim = of["dim"]
            if entry["type"] == "lut":
                options = tuple(of.get("possible_values") or ())
                rows = of["n_bins"]
                good = (
                    is_whole(rows) and len(options) <= rows <= _MAX_WHOLE and all(isinstance(o, str) for o in options)
                )
            elif entry["type"] == "tensor":
                options, rows, good = None, 0, True
            else:
                good = False
            if not good or not is_whole(dim) or not 1 <= dim <= _MAX_WHOLE or not _NAME.fullmatch(name):
                raise ValueError
            found[name] = Conditioner(dim, options, rows)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{source} has conditioners that are not understood.") from None
    return found


def _fuser(values: Any, source: str) -> Fuser:
    """Read `fuser`: how conditions reach the model."""
    try:
        lists = {key: tuple(values.get(key) or ()) for key in ("sum", "cross", "prepend")}
        scale = values.get("cross_attention_pos_emb_scale", 1) if values.get("cross_attention_pos_emb") else 0
        if (
            lists["prepend"]
            or not (_FLOAT.has(scale) or scale == 0)
            or not all(isinstance(n, str) for n in sum(lists.values(), ()))
        ):
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{source} has a fuser that is not understood.") from None
    return Fuser(lists["sum"], lists["cross"], float(scale))


def _gate_width(feedforward: int, dim: int) -> int:
    return max(1, 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3)


def _wrong(key: str, value: object, expected: str) -> InputError:
    shown = "null" if value is None else brief(value)
    return InputError(f"The model's configuration has {key} = {shown}", f"{expected} is expected")


def _listed(keys: list[Any]) -> str:
    shown = [str(key) if str(key).isprintable() and len(str(key)) < 60 else brief(key) for key in keys[:5]]
    return ", ".join(shown) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"has {brief(next(key for key in keys if keys.count(key) > 1))} twice")
    return found
