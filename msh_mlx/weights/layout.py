"""The two layouts of published checkpoints, PyTorch's and MLX's: translate the first into the second."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from .safetensors import TensorInfo

_NAMES = [
    (re.compile(r"(?:text_emb(?:\.out[12])?|text_linear|extra_heads\.\d+)\.weight|condition_provider\..*"), r"\g<0>"),
    (re.compile(r"emb\.(\d+)\.weight"), r"audio_embs.\1.weight"),
    (re.compile(r"out_norm\.alpha"), "out_norm.weight"),
    (re.compile(r"(transformer\.layers\.\d+\.(?:self_attn|cross_attention)\.in_proj)_weight"), r"\1.weight"),
    (re.compile(r"(transformer\.layers\.\d+\.(?:self_attn|cross_attention)\.(?:in|out)_proj)s\.0\.weight"), r"\1.weight"),
    (re.compile(r"(transformer\.layers\.\d+\.norm[12])\.alpha"), r"\1.weight"),
    (re.compile(r"linears\.(\d+)\.weight"), r"depformer.slices.\1.linear_out.weight"),
    (re.compile(r"depformer_text_emb\.((?:out[12]\.|low_rank\.)?weight)"), r"depformer.slices.0.emb.\1"),
    (re.compile(r"depformer_norms\.(\d+)\.(weight|bias)"), r"depformer.slices.\1.norm.\2"),
]  # fmt: skip
# Tensors of a slice of the depformer, which may serve several codebooks.
_SLICED = [
    (re.compile(r"depformer_in\.(?P<part>\d+)\.weight"), r"linear_in.weight"),
    (re.compile(r"depformer\.layers\.(\d+)\.gating\.(?P<part>\d+)\.linear_(in|out)\.weight"),
     r"transformer.layers.\1.gating.linear_\3.weight"),
    (re.compile(r"depformer\.layers\.(\d+)\.self_attn\.(in|out)_projs\.(?P<part>\d+)\.weight"),
     r"transformer.layers.\1.self_attn.\2_proj.weight"),
]  # fmt: skip
_DEPFORMER_EMB = re.compile(r"depformer_emb\.(\d+)\.((?:low_rank\.)?weight)")
_STACKED = re.compile(r"depformer\.layers\.(\d+)\.self_attn\.(in|out)_proj(?:_|\.)weight")
_OF_A_SLICE = re.compile(r"depformer\.slices\.(\d+)\.(?=linear_in\.|transformer\.)")
_SHARED = re.compile(r"depformer\.layers\.(\d+)\.(norm[12])\.alpha")


def is_pytorch(names: Collection[str]) -> bool:
    """Tell whether the layout is PyTorch's, not MLX's, by the name of the last norm."""
    return "out_norm.alpha" in names


def mlx_names(name: str, slices: Sequence[int]) -> list[list[str]]:
    """Return the MLX names of PyTorch's tensor `name`, for each part of it along its rows; a part may have several names.

    `slices` has the number of the slice that each codebook of the depformer uses. A slice is called by the first codebook that
    uses it. An unknown name stays as it is.
    """
    owners = [slices.index(number) for number in sorted(set(slices))]
    if slices and (match := _STACKED.fullmatch(name)):
        rest = f"transformer.layers.{match[1]}.self_attn.{match[2]}_proj.weight"
        return [[f"depformer.slices.{k}.{rest}"] for k in owners]
    if slices and (match := _SHARED.fullmatch(name)):
        return [[f"depformer.slices.{k}.transformer.layers.{match[1]}.{match[2]}.weight" for k in owners]]
    if match := _DEPFORMER_EMB.fullmatch(name):
        return [[f"depformer.slices.{int(match[1]) + 1}.emb.{match[2]}"]]
    for pattern, new in _SLICED:
        if (match := pattern.fullmatch(name)) and (part := int(match["part"])) < len(owners):
            return [[f"depformer.slices.{owners[part]}.{match.expand(new)}"]]
    for pattern, new in _NAMES:
        if match := pattern.fullmatch(name):
            return [[match.expand(new)]]
    return [[name]]


def copies(names: Collection[str], slices: Sequence[int]) -> dict[str, str]:
    """Return the names in the MLX layout that belong to a slice of an earlier codebook, too, with the names there.

    Files in this layout may hold such a slice once, or a copy of it for each codebook.
    """
    found = {}
    for name in names:
        if (match := _OF_A_SLICE.match(name)) and (k := int(match[1])) < len(slices):
            owner = slices.index(slices[k])
            if owner != k:
                found[name] = f"depformer.slices.{owner}.{name[match.end() :]}"
    return found


def to_mlx_layout(header: Mapping[str, TensorInfo], slices: Sequence[int], run: int) -> dict[str, TensorInfo]:
    """Return where a file holds each tensor of the MLX layout.

    `slices` is as for `mlx_names`; only the first `run` of them are kept. An unknown name stays as it is: the check of the
    model refuses it.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in header.items():
        if name.endswith(".alpha"):
            info = TensorInfo(info.dtype, (math.prod(info.shape),), info.begin)
        parts = mlx_names(name, slices) if is_pytorch(header) else [[name]]
        rows, rest = divmod(info.shape[0], len(parts)) if info.shape else (0, 1)
        if len(parts) > 1 and (rest or len(info.shape) != 2):
            parts = [[name]]
        for i, names in enumerate(parts):
            part = info.rows(i * rows, (i + 1) * rows) if len(parts) > 1 else info
            found |= dict.fromkeys(names, part)
    gone = tuple(f"depformer.slices.{k}." for k in range(run, len(slices)))
    return {name: info for name, info in found.items() if not name.startswith(gone)} if gone else found
