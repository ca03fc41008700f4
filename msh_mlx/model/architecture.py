"""`Architecture`: the sizes of a model of the family, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InputError
from ..system.inputs import brief
from .conditions import Conditioner, Fuser
from .grid import Streams
from .ranges import LORA_SCALING, Range, is_whole

FLOAT = Range(1e-9, 1e12)
MAX_WHOLE = 1 << 24
SCHEDULE = "depformer_weights_per_step_schedule"  # the key of `schedule` in a `config.json`
_MAY_BE_ZERO = ("existing_text_padding_id", "dep_q", "extra_heads_num_heads", "extra_heads_dim")


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Moshi language model. The defaults are those of the published v0.1 (Moshiko and Moshika, 7 B).

    Names and values are as in the `config.json` of the published checkpoints. `delays` has `1 + n_q` entries, in steps of
    80 ms: text, the model's own `dep_q` codebooks, the user's `n_q - dep_q` codebooks. `context` counts steps. `schedule` has
    the number of the depformer's weights for each own codebook; None: each has its own. `lora_scaling` is the factor of the
    adapters that belong to the model; None: the configuration does not say.

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
    extra_heads_dim: int = 6
    model_type: str | None = None
    stt_config: Mapping[str, Any] | None = None
    tts_config: Mapping[str, Any] | None = None
    prompt_codes: Mapping[str, Any] | None = None
    # How tokens are chosen, and what voices are made for; only who reads them checks them. The model is the same with others.
    lm_gen_config: Any = field(default=None, compare=False)
    model_id: Any = field(default=None, compare=False)
    conditioners: Mapping[str, Conditioner] = field(default_factory=dict)
    fuser: Fuser = field(default_factory=Fuser)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "delays":
                if not isinstance(value, list | tuple) or not all(is_whole(d) and 0 <= d < 1000 for d in value):
                    raise wrong(entry.name, value, "a list of whole numbers ≥ 0")
                object.__setattr__(self, "delays", tuple(value))
            elif entry.name == "lora_scaling":
                if value is not None:
                    if not LORA_SCALING.has(value):
                        raise wrong(entry.name, value, str(LORA_SCALING))
                    object.__setattr__(self, entry.name, float(value))
            elif entry.type == "float":
                if not FLOAT.has(value):
                    raise wrong(entry.name, value, str(FLOAT))
                object.__setattr__(self, entry.name, float(value))
            elif entry.type in ("int", "int | None"):
                least = 0 if entry.name in _MAY_BE_ZERO else 1
                good = is_whole(value) and least <= value <= MAX_WHOLE
                if not (good or (value is None and entry.type == "int | None")):
                    raise wrong(entry.name, value, f"a whole number from {least} to 2^24")
            elif entry.type == "bool" and not isinstance(value, bool):
                raise wrong(entry.name, value, "true or false")
            elif entry.type == "str | None" and value is not None and not isinstance(value, str):
                raise wrong(entry.name, value, "a text")
            elif entry.type == "Mapping[str, Any] | None" and value is not None and not isinstance(value, Mapping):
                raise wrong(entry.name, value, "an object")
        if self.positional_embedding not in ("rope", "rope_concat"):
            raise wrong("positional_embedding", self.positional_embedding, "rope or rope_concat")
        if self.depformer_norm not in (None, "layer_norm"):
            raise wrong("depformer_norm", self.depformer_norm, "layer_norm or null")
        if (schedule := self.schedule) is not None:
            good = isinstance(schedule, list | tuple) and all(is_whole(s) and s >= 0 for s in schedule)
            if not good or len(schedule) != self.dep_q or sorted(set(schedule)) != list(range(len(set(schedule)))):
                raise wrong(SCHEDULE, schedule, f"a list of {self.dep_q} numbers from 0 on, with none left out,")
            own = tuple(schedule) == tuple(range(self.dep_q))
            object.__setattr__(self, "schedule", None if own else tuple(schedule))
        if self.text_card_out == self.text_card:
            object.__setattr__(self, "text_card_out", None)
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
                (self.text_card_out or 0) <= self.text_card,
                f"text_card_out = {self.text_card_out} is larger than text_card = {self.text_card}",
            ),
            (
                self.existing_text_padding_id < (self.text_card_out or self.text_card),
                f"existing_text_padding_id is not below {'text_card_out' if self.text_card_out else 'text_card'}",
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
        """The number of the depformer's weights that each own codebook uses."""
        return self.schedule or tuple(range(self.dep_q))

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


def wrong(key: str, value: object, expected: str) -> InputError:
    """Make the error for a value of a configuration."""
    shown = "null" if value is None else brief(value)
    return InputError(f"The model's configuration has {key} = {shown}", f"{expected} is expected")


def _gate_width(feedforward: int, dim: int) -> int:
    return max(1, 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3)
