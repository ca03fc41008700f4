"""`LmConfig`: the sizes of a Moshi language model, read from a checkpoint's `config.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError
from ..system.inputs import brief, decode_text, read_small
from ..system.places import user_path
from .ranges import LORA_SCALING, Range, is_whole

# A configuration has about a kilobyte. A much larger file is something else.
_MAX_SIZE = 1 << 20
_FLOAT = Range(1e-9, 1e12)
_MAX_WHOLE = 1 << 24
_SCHEDULE = "depformer_weights_per_step_schedule"
_SPEECH_TO_TEXT = "a speech-to-text model"

# Keys that change the architecture, with the only value that is implemented here. null means the same value.
_FIXED: dict[str, Any] = {
    "bias_proj": False,
    "causal": True,
    "conditioners": {},
    "cross_attention": False,
    "demux_second_stream": False,
    "depformer_gating": "silu",
    "depformer_kv_repeat": 1,
    "depformer_layer_scale": None,
    "depformer_low_rank_embeddings": None,
    "depformer_multi_linear": True,
    "depformer_norm": None,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "extra_heads_num_heads": 0,
    "gating": "silu",
    "kv_repeat": 1,
    "layer_scale": None,
    "norm": "rms_norm_f32",
    "norm_emb": False,
    "positional_embedding": "rope",
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
        "extra_heads_dim",
        "fuser",
        "gradient_checkpointing",
        "lm_gen_config",
        "lora_name",
        "lora_rank",
        "mimi_config_name",
        "mimi_name",
        "model_id",
        "model_type",
        "moshi_name",
        "stt_config",
        "tokenizer_name",
        "tts_config",
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

    def __post_init__(self) -> None:
        if self.dep_q == 0 and is_whole(self.dep_q):
            raise not_run("The model's configuration is of", _SPEECH_TO_TEXT)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "delays":
                if not isinstance(value, list | tuple) or not all(is_whole(d) and 0 <= d < 1000 for d in value):
                    raise _wrong(field.name, value, "a list of whole numbers ≥ 0")
                object.__setattr__(self, "delays", tuple(value))
            elif field.name == "lora_scaling":
                if value is not None:
                    object.__setattr__(self, field.name, scaling_in({field.name: value}, "The model's configuration"))
            elif field.type == "float":
                if not _FLOAT.has(value):
                    raise _wrong(field.name, value, str(_FLOAT))
                object.__setattr__(self, field.name, float(value))
            else:
                least = 0 if field.name == "existing_text_padding_id" else 1
                if not is_whole(value) or not least <= value <= _MAX_WHOLE:
                    raise _wrong(field.name, value, f"a whole number from {least} to 2^24")
        self._check_together()

    def _check_together(self) -> None:
        checks = [
            (self.dep_q <= self.n_q, f"dep_q = {self.dep_q} is larger than n_q = {self.n_q}"),
            (self.dep_q < self.n_q, f"dep_q = n_q = {self.n_q} leaves no codebook for the user"),
            (len(self.delays) == 1 + self.n_q, f"delays has {len(self.delays)} entries in place of 1 + n_q = {1 + self.n_q}"),
            (self.dim % (2 * self.num_heads) == 0, f"dim = {self.dim} is not an even multiple of num_heads = {self.num_heads}"),
            (
                self.depformer_dim % self.depformer_num_heads == 0,
                f"depformer_dim = {self.depformer_dim} is not a multiple of depformer_num_heads = {self.depformer_num_heads}",
            ),
            (self.existing_text_padding_id < self.text_card, "existing_text_padding_id is not below text_card"),
        ]  # fmt: skip
        for good, what in checks:
            if not good:
                raise InputError(f"The model's configuration does not fit together: {what}.")

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
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known - set(_FIXED) - _IGNORED - {"lora", "text_card_out", _SCHEDULE})
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
        given["lora_scaling"] = scaling_in(values, source)
        width = given.pop("depformer_dim_feedforward", cls.depformer_dim_feedforward)
        if isinstance(width, list) and width and width.count(width[0]) == len(width):  # of every step
            width = width[0]
        config = cls(**given)
        if values.get("text_card_out") not in (None, config.text_card):
            raise _wrong(
                "text_card_out", values["text_card_out"], f"the same as text_card = {config.text_card}, or null,"
            )
        # Each codebook has its own weights in the depformer. A schedule may say the same.
        own = list(range(config.dep_q))
        if values.get(_SCHEDULE) not in (None, own):
            raise InputError(f"{source} has {_SCHEDULE} = {brief(values[_SCHEDULE])}", f"only {own} can be run")
        if width is None:
            width = int(config.hidden_scale * config.depformer_dim)
        return replace(config, depformer_dim_feedforward=width)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, lora: bool = False) -> LmConfig:
        """Read a `config.json`. `lora` is as for `from_dict`.

        Raises
        ------
        InputError
            The file cannot be read, is not a JSON object, or `from_dict` refuses it.
        """
        return cls.from_dict(read_config(path), f"The configuration {user_path(path)}", lora=lora)

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
