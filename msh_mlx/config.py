"""`LmConfig`: the numbers of a Moshi language model, and what a checkpoint's `config.json` may say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import InputError
from .inputs import brief, read_small
from .places import user_path

# A configuration has about a kilobyte; what is much larger is something else.
_MAX_SIZE = 1 << 20
_MAX_FLOAT = 1e12

# Keys that change the architecture, with the one value that this implementation has.
_FIXED: dict[str, Any] = {
    "causal": True,
    "cross_attention": False,
    "conditioners": {},
    "demux_second_stream": False,
    "depformer_gating": "silu",
    "depformer_kv_repeat": 1,
    "depformer_layer_scale": None,
    "depformer_low_rank_embeddings": None,
    "depformer_multi_linear": True,
    "depformer_norm": "rms_norm_f32",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_weights_per_step_schedule": None,
    "extra_heads_num_heads": 0,
    "gating": "silu",
    "kv_repeat": 1,
    "layer_scale": None,
    "lora": False,
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
}

# Keys that say nothing about inference with this model: names of files, settings of training and of other programs,
# parts that `_FIXED` makes sure are absent, and the depformer's rotation period (it has no positional embedding).
_IGNORED = frozenset(
    {
        "depformer_max_period",
        "existing_text_end_padding_id",
        "extra_heads_dim",
        "fuser",
        "lm_gen_config",
        "lora_rank",
        "lora_scaling",
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
    """The architecture of a Moshi language model; the defaults are the published v0.1 (Moshiko and Moshika, 7 B).

    Keys and values are those of the `config.json` of the published checkpoints. `delays` has `1 + n_q` entries:
    text, the model's own `dep_q` codebooks, the user's `n_q - dep_q` codebooks, in steps of 80 ms. `context` counts steps.

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
    depformer_context: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "delays":
                if not isinstance(value, list | tuple) or not all(_is_int(d) and 0 <= d < 1000 for d in value):
                    raise InputError(
                        f"The model's configuration has delays = {brief(value)}; a list of whole numbers ≥ 0 is expected."
                    )
                object.__setattr__(self, "delays", tuple(value))
            elif field.type == "float":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_FLOAT:
                    raise InputError(
                        f"The model's configuration has {field.name} = {brief(value)}; a number > 0 and up to 1e12 is expected."
                    )
                object.__setattr__(self, field.name, float(value))
            else:
                least = 0 if field.name == "existing_text_padding_id" else 1
                if not _is_int(value) or not least <= value <= 1 << 24:
                    raise InputError(
                        f"The model's configuration has {field.name} = {brief(value)}; a whole number ≥ {least} is expected."
                    )
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
                self.depformer_context >= self.dep_q,
                f"depformer_context = {self.depformer_context} is less than dep_q = {self.dep_q}",
            ),
            (self.existing_text_padding_id < self.text_card, "existing_text_padding_id is not below text_card"),
        ]  # fmt: skip
        for good, what in checks:
            if not good:
                raise InputError(f"The model's configuration does not fit together: {what}.")

    @property
    def user_q(self) -> int:
        """How many codebooks of the user the model hears."""
        return self.n_q - self.dep_q

    @property
    def max_delay(self) -> int:
        """The largest delay, in steps: own frame f is complete at position f + max_delay."""
        return max(self.delays)

    @property
    def hidden(self) -> int:
        """Width of the temporal feed-forward's inner layer; a checkpoint's shapes have the last word."""
        return max(1, int(2 * self.hidden_scale * self.dim / 3))

    @property
    def depformer_hidden(self) -> int:
        """Width of the depformer feed-forward's inner layer; a checkpoint's shapes have the last word."""
        return max(1, 2 * self.depformer_dim_feedforward // 3)

    @property
    def padding_ids(self) -> frozenset[int]:
        """Text tokens that stand for no text: 0 ends a pad, `existing_text_padding_id` pads."""
        return frozenset({0, self.existing_text_padding_id})

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: str = "The model's configuration", *, lora: bool = False
    ) -> LmConfig:
        """Read the keys of a `config.json`; missing keys take the v0.1 value. With `lora` it may be one with adapters.

        Raises
        ------
        InputError
            A key is unknown, or says something that this implementation does not have; `source` is named.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known - set(_FIXED) - _IGNORED)
        if unknown:
            raise InputError(f"{source} has keys that are not known: {_listed(unknown)}.")
        for key, only in _FIXED.items():
            if key in values and values[key] != only:
                if key == "lora" and values[key] is True:
                    if lora:
                        continue
                    raise InputError(f"{source} is of a model with LoRA adapters; give them with --lora.")
                raise InputError(f"{source} has {key} = {brief(values[key])}; only {only!r} can be run.")
        given = {key: value for key, value in values.items() if key in known}
        # A depformer always sees all of its steps; v0.1's value is only right for v0.1's dep_q.
        given.setdefault("depformer_context", max(8, given["dep_q"]) if _is_int(given.get("dep_q")) else 8)
        return cls(**given)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, lora: bool = False) -> LmConfig:
        """Read a `config.json`; `lora` as for `from_dict`.

        Raises
        ------
        InputError
            The file cannot be read, is not a JSON object, or `from_dict` refuses it.
        """
        path = user_path(path)
        raw = read_small(path, "The configuration", _MAX_SIZE)
        try:
            values = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct)
        except InputError as error:
            raise InputError(f"The configuration {path} {error}.") from None
        except (ValueError, RecursionError):
            raise InputError(f"The configuration {path} is not valid JSON.") from None
        if not isinstance(values, dict):
            raise InputError(f"The configuration {path} is not a JSON object.")
        return cls.from_dict(values, f"The configuration {path}", lora=lora)

    @classmethod
    def of(
        cls, config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None, *, lora: bool = False
    ) -> LmConfig:
        """Take a configuration in any form: an `LmConfig`, a dict, a path, or None for v0.1; `lora` as for `from_dict`."""
        if config is None:
            return cls()
        if isinstance(config, LmConfig):
            return config
        if isinstance(config, Mapping):
            return cls.from_dict(config, lora=lora)
        return cls.from_file(config, lora=lora)


def _listed(keys: list[Any]) -> str:
    shown = [str(key) if str(key).isprintable() and len(str(key)) < 60 else brief(key) for key in keys[:5]]
    return ", ".join(shown) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"has {brief(next(key for key in keys if keys.count(key) > 1))} twice")
    return found


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
