"""The two layouts of published checkpoints, PyTorch's and MLX's: translate the first into the second."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

from .safetensors import TensorInfo

_NAMES = [
    (re.compile(r"text_emb\.weight|text_linear\.weight"), r"\g<0>"),
    (re.compile(r"emb\.(\d+)\.weight"), r"audio_embs.\1.weight"),
    (re.compile(r"out_norm\.alpha"), "out_norm.weight"),
    (re.compile(r"(transformer\.layers\.\d+\.self_attn\.in_proj)_weight"), r"\1.weight"),
    (re.compile(r"(transformer\.layers\.\d+\.self_attn\.(?:in|out)_proj)s\.0\.weight"), r"\1.weight"),
    (re.compile(r"(transformer\.layers\.\d+\.norm[12])\.alpha"), r"\1.weight"),
    (re.compile(r"depformer_in\.(\d+)\.weight"), r"depformer.slices.\1.linear_in.weight"),
    (re.compile(r"linears\.(\d+)\.weight"), r"depformer.slices.\1.linear_out.weight"),
    (re.compile(r"depformer_text_emb\.weight"), "depformer.slices.0.emb.weight"),
    (re.compile(r"depformer\.layers\.(\d+)\.gating\.(\d+)\.linear_(in|out)\.weight"),
     r"depformer.slices.\2.transformer.layers.\1.gating.linear_\3.weight"),
    (re.compile(r"depformer\.layers\.(\d+)\.self_attn\.(in|out)_projs\.(\d+)\.weight"),
     r"depformer.slices.\3.transformer.layers.\1.self_attn.\2_proj.weight"),
]  # fmt: skip
_DEPFORMER_EMB = re.compile(r"depformer_emb\.(\d+)\.weight")
_STACKED = re.compile(r"depformer\.layers\.(\d+)\.self_attn\.(in|out)_proj(?:_|\.)weight")
_SHARED = re.compile(r"depformer\.layers\.(\d+)\.(norm[12])\.alpha")


def is_pytorch(names: Collection[str]) -> bool:
    """Tell whether the layout is PyTorch's, not MLX's, by the name of the last norm."""
    return "out_norm.alpha" in names


def stacked_names(name: str, dep_q: int) -> list[str]:
    """Return the MLX names of the tensors that lie stacked along the rows of PyTorch's tensor `name`; [] if not stacked."""
    match = _STACKED.fullmatch(name)
    if not match:
        return []
    layer, proj = match.groups()
    return [f"depformer.slices.{k}.transformer.layers.{layer}.self_attn.{proj}_proj.weight" for k in range(dep_q)]


def mlx_name(name: str) -> str:
    """Return the MLX name of PyTorch's tensor `name`. An unknown name stays as it is."""
    if match := _DEPFORMER_EMB.fullmatch(name):
        return f"depformer.slices.{int(match[1]) + 1}.emb.weight"
    for pattern, new in _NAMES:
        if match := pattern.fullmatch(name):
            return match.expand(new)
    return name


def to_mlx_layout(header: Mapping[str, TensorInfo], dep_q: int) -> dict[str, TensorInfo]:
    """Return where a file holds each tensor of the MLX layout.

    A stacked tensor becomes several, each a range of its rows. A shared tensor appears under both names. An unknown name stays
    as it is: the check of the model refuses it.
    """
    if not is_pytorch(header):
        return dict(header)
    found: dict[str, TensorInfo] = {}
    for name, info in header.items():
        if name.endswith(".alpha"):
            info = TensorInfo(info.dtype, (math.prod(info.shape),), info.begin)
        stacked = stacked_names(name, dep_q)
        if stacked and len(info.shape) == 2 and info.shape[0] % dep_q == 0:
            rows = info.shape[0] // dep_q
            for k, new in enumerate(stacked):
                found[new] = info.rows(k * rows, (k + 1) * rows)
        elif match := _SHARED.fullmatch(name):
            layer, norm = match.groups()
            for k in range(dep_q):
                found[f"depformer.slices.{k}.transformer.layers.{layer}.{norm}.weight"] = info
        else:
            found[mlx_name(name)] = info
    return found
