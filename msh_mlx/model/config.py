"""`LmConfig`: the sizes of a Moshi language model, read from a checkpoint's `config.json` and written to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from ..errors import InputError
from ..system.inputs import brief, decode_text, read_small
from ..system.places import user_path
from .architecture import FLOAT, MAX_WHOLE, SCHEDULE, Architecture
from .conditions import Conditioner, Fuser
from .families import family_of
from .families.others import other_of
from .ranges import LORA_SCALING, is_whole

# A configuration has about a kilobyte. A much larger file is something else.
_MAX_SIZE = 1 << 20
_NAME = re.compile(r"\w{1,64}")
# Keys for which null means what a missing key means.
_NULL_IS_DEFAULT = (
    "kv_repeat", "positional_embedding", "cross_attention", "demux_second_stream", "extra_heads_num_heads", "extra_heads_dim",
)  # fmt: skip

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

# Keys that do not matter for inference, whatever their values: names of files and remarks (`_NAMES`); settings
# of training and of other programs; what the tensors say themselves; parts that are absent because of `_FIXED`; and the
# depformer's window and rotation, because it sees all of a step's codebooks and has no positional embedding.
_NAMES = re.compile(r"_.*|.*_(name|path|repo)")
_IGNORED = frozenset(
    {
        "checkpointing",
        "depformer_causal",
        "depformer_context",
        "depformer_max_period",
        "device",
        "dtype",
        "existing_text_end_padding_id",
        "gradient_checkpointing",
        "lora_rank",
        "positional_scale",
        "quantization",
        "quantization_config",
        "torch_dtype",
        "version",
    }
)


@dataclass(frozen=True)
class LmConfig(Architecture):
    """The architecture of a Moshi language model, as a checkpoint's `config.json` has it. The defaults are those of v0.1."""

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: str = "The model's configuration", *, lora: bool = False
    ) -> LmConfig:
        """Read the keys of a `config.json`. Missing keys have their v0.1 value. `lora` allows a model with adapters.

        Raises
        ------
        InputError
            A key is unknown, or has a value that is not implemented, or the model is of a kind that is known but not run. The
            message names `source`.
        """
        if other := other_of(values):
            raise InputError(f"{source} is of {other.title}, which this program does not run", other.advice)
        return cls._read(values, source, lora)

    @classmethod
    def _read(cls, values: Mapping[str, Any], source: str, lora: bool) -> LmConfig:
        if values.get("dep_q") == 0:  # there is no depformer, whatever is said of it
            values = {key: value for key, value in values.items() if not key.startswith("depformer_")}
        if (demux := values.get("demux_second_text_stream")) is not None:  # another name of the same
            values = {"demux_second_stream": demux, **values}
        known = {entry.name for entry in fields(cls)} - {"schedule"}
        others = set(values) - known - set(_FIXED) - _IGNORED - {"lora", SCHEDULE, "demux_second_text_stream"}
        # A key without a value asks for nothing.
        unknown = sorted(key for key in others if values[key] is not None and not _NAMES.fullmatch(key))
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
        given["schedule"] = values.get(SCHEDULE)
        given["conditioners"] = _conditioners(values.get("conditioners") or {}, source)
        given["fuser"] = _fuser(values.get("fuser") or {}, source)
        width = given.pop("depformer_dim_feedforward", cls.depformer_dim_feedforward)
        if isinstance(width, list) and width and width.count(width[0]) == len(width):  # of every step
            width = width[0]
        config = cls(**given)
        if width is None:
            width = int(config.hidden_scale * config.depformer_dim)
        config = replace(config, depformer_dim_feedforward=width)
        return cast(LmConfig, family_of(config).adapted(config))

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
        for key in ("lora_scaling", "conditioners", "fuser"):
            values.pop(key, None)
        if (schedule := values.pop("schedule", None)) is not None:
            values[SCHEDULE] = schedule
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
                good = is_whole(rows) and len(options) <= rows <= MAX_WHOLE and all(isinstance(o, str) for o in options)
            elif entry["type"] == "tensor":
                options, rows, good = None, 0, True
            else:
                good = False
            if not good or not is_whole(dim) or not 1 <= dim <= MAX_WHOLE or not _NAME.fullmatch(name):
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
            or not (FLOAT.has(scale) or scale == 0)
            or not all(isinstance(n, str) for n in sum(lists.values(), ()))
        ):
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{source} has a fuser that is not understood.") from None
    return Fuser(lists["sum"], lists["cross"], float(scale))


def _listed(keys: list[Any]) -> str:
    shown = [str(key) if str(key).isprintable() and len(str(key)) < 60 else brief(key) for key in keys[:5]]
    return ", ".join(shown) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"has {brief(next(key for key in keys if keys.count(key) > 1))} twice")
    return found
