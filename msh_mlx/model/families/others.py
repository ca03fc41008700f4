"""Models that are recognised, but not run: what they are called, and what to give in their place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Other:
    """A kind of model. `keys` are those of its configuration alone, `tensors` fits the names of tensors of it alone."""

    name: str
    title: str
    advice: str
    keys: frozenset[str]
    tensors: re.Pattern[str]


OTHERS = (
    Other(
        "moshivis",
        "a model that sees images (MoshiVis)",
        "give a Moshi model without it, such as hf:kyutai/moshika-mlx-q4/model.q4.safetensors",
        frozenset({"xa_layers", "xa_gating", "xa_shared", "num_crossattended_tokens"}),
        re.compile(r"(image_prefix|img_embedder)\.|.*\.cross_attention\.mha\."),
    ),
    Other(
        "csm",
        "a text-to-speech model of another kind (CSM)",
        "give one of Kyutai's, such as kyutai/tts-1.6b-en_fr",
        frozenset({"backbone_flavor", "decoder_flavor", "depth_decoder_config"}),
        re.compile(r"(codebook0_head|backbone|backbone_model|embed_text_tokens|text_embeddings)\."),
    ),
    Other(
        "mimi",
        "a codec (Mimi)",
        "give the configuration of a language model",
        frozenset({"seanet", "quantizer", "upsampling_ratios", "codebook_dim"}),
        re.compile(r"(?!)"),  # `weights.kinds` knows its tensors
    ),
    Other(
        "transformers",
        "the Transformers library's own form of a model",
        "give Kyutai's own file, with its configuration",
        frozenset({"architectures", "transformers_version"}),
        re.compile(r"(?!)"),
    ),
)  # fmt: skip


def other_of(values: Mapping[str, Any]) -> Other | None:
    """Return the kind of model that a configuration is of; None: it is of none of these."""
    said = {key for key, value in values.items() if value is not None}
    return next((other for other in OTHERS if values.get("model_type") == other.name or other.keys & said), None)


def other_with(names: Collection[str]) -> Other | None:
    """Return the kind of model that has tensors of these names; None: it is none of these."""
    return next((other for other in OTHERS if any(map(other.tensors.match, names))), None)
