"""Checkpoints: the one place that reads, checks and renames the language model's tensors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .config import LmConfig
from .errors import InputError
from .models.lm import Lm

# https://huggingface.co/docs/safetensors: the header is at most 100 MB.
_MAX_HEADER = 100_000_000
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor: its dtype, as there ("F32", "BF16", …), and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed: `scale · n + bias` per group of `group_size` along a row, n of `bits` bits."""

    bits: int
    group_size: int


def read_header(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises
    ------
    InputError
        The file cannot be read, is no safetensors file, or is shorter or longer than its header says.
    """
    path = Path(path).expanduser()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            raw = file.read(length) if len(start) == 8 and length <= min(_MAX_HEADER, size - 8) else b""
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the .safetensors file in it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if size == 0:
        raise InputError(f"{path} is empty; fetch the file again.")
    if not raw.startswith(b"{"):
        if len(start) == 8 and size - 8 < length <= _MAX_HEADER and size < _MAX_HEADER and not start.isascii():
            raise InputError(f"{path} is cut off in its header; fetch the file again.")
        raise InputError(f"{path} is not a safetensors file.")
    try:
        header = json.loads(raw)
        tensors = {name: _tensor_info(name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path} has a broken safetensors header; fetch the file again.") from None
    end = 0
    for name, (_, begin, stop) in sorted(tensors.items(), key=lambda item: item[1][1:]):
        if begin != end:
            raise InputError(f"{path} has a broken safetensors header: the place of {name} is wrong.")
        end = stop
    if end != size - 8 - length:
        what = "cut off" if end > size - 8 - length else "longer than its header says"
        raise InputError(
            f"{path} is {what}: {size:,} bytes in place of {8 + length + end:,}; fetch the file again."
        )  # fmt: skip
    return {name: info for name, (info, _, _) in tensors.items()}


def _tensor_info(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    if not name.isprintable() or not whole or end - begin != math.prod(shape) * _DTYPE_BYTES[entry["dtype"]]:
        raise ValueError(name)
    return TensorInfo(entry["dtype"], shape), begin, end


def _is_pytorch(names: Mapping[str, object]) -> bool:
    return "out_norm.alpha" in names


_PYTORCH_NAMES = [
    (re.compile(r"text_emb\.weight|text_linear\.weight"), r"\g<0>"),
    (re.compile(r"emb\.(\d+)\.weight"), r"audio_embs.\1.weight"),
    (re.compile(r"out_norm\.alpha"), "out_norm.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.self_attn\.in_proj_weight"), r"transformer.layers.\1.self_attn.in_proj.weight"),
    (re.compile(r"transformer\.layers\.\d+\.self_attn\.out_proj\.weight"), r"\g<0>"),
    (re.compile(r"transformer\.layers\.\d+\.gating\.linear_(in|out)\.weight"), r"\g<0>"),
    (re.compile(r"(transformer\.layers\.\d+\.norm[12])\.alpha"), r"\1.weight"),
    (re.compile(r"depformer_in\.(\d+)\.weight"), r"depformer.slices.\1.linear_in.weight"),
    (re.compile(r"linears\.(\d+)\.weight"), r"depformer.slices.\1.linear_out.weight"),
    (re.compile(r"depformer_text_emb\.weight"), "depformer.slices.0.emb.weight"),
    (re.compile(r"depformer\.layers\.(\d+)\.gating\.(\d+)\.linear_(in|out)\.weight"),
     r"depformer.slices.\2.transformer.layers.\1.gating.linear_\3.weight"),
]  # fmt: skip
_DEPFORMER_EMB = re.compile(r"depformer_emb\.(\d+)\.weight")
_DEPFORMER_ATTENTION = re.compile(r"depformer\.layers\.(\d+)\.self_attn\.(in|out)_proj(?:_|\.)weight")
_DEPFORMER_NORM = re.compile(r"depformer\.layers\.(\d+)\.(norm[12])\.alpha")


def to_mlx_layout(name: str, array: mx.array, dep_q: int) -> Iterator[tuple[str, mx.array]]:
    """Rename one tensor of the PyTorch layout to the MLX layout, splitting what is stacked and copying what is shared.

    A name that is not known comes back as it is, for the strict load to name it.
    """
    if name.endswith(".alpha"):
        array = array.reshape(-1)
    if match := _DEPFORMER_ATTENTION.fullmatch(name):
        layer, proj = match.groups()
        if array.ndim == 2 and array.shape[0] % dep_q == 0:
            for k, rows in enumerate(mx.split(array, dep_q, axis=0)):
                yield f"depformer.slices.{k}.transformer.layers.{layer}.self_attn.{proj}_proj.weight", rows
            return
    elif match := _DEPFORMER_NORM.fullmatch(name):
        layer, norm = match.groups()
        for k in range(dep_q):
            yield f"depformer.slices.{k}.transformer.layers.{layer}.{norm}.weight", array
        return
    elif match := _DEPFORMER_EMB.fullmatch(name):
        yield f"depformer.slices.{int(match[1]) + 1}.emb.weight", array
        return
    for pattern, new in _PYTORCH_NAMES:
        if match := pattern.fullmatch(name):
            yield match.expand(new), array
            return
    yield name, array


def default_dtype() -> mx.Dtype:
    """Choose the activations' dtype by the device: float32 on the CPU, where bfloat16 is ten times slower, else bfloat16."""
    return mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16


def load_lm(
    path: str | os.PathLike[str],
    config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    dtype: mx.Dtype | None = None,
    *,
    quantized: int | None = None,
) -> Lm:
    """Load a Moshi language model from a safetensors file in the MLX or the PyTorch layout.

    Which weights are quantized, with how many bits and in what groups, is read off the stored tensors.

    Parameters
    ----------
    path
        The file.
    config
        A path to a `config.json`, its contents as a dict, an `LmConfig`, or None for v0.1.
    dtype
        Of the activations, and of the weights that are not quantized; None chooses by the device (`default_dtype`).
    quantized
        The bits that the caller believes the file to have; another number is an error.

    Raises
    ------
    InputError
        The file or the configuration is wrong, or they do not fit each other; the message says which tensor.
    """
    path = Path(path).expanduser()
    header = read_header(path)
    lm_config = LmConfig.of(config)
    _check_kind(path, header)
    _check_quantized(path, header, quantized)
    if dtype is None:
        dtype = default_dtype()
    raw = mx.load(str(path))
    if not isinstance(raw, dict):
        raise InputError(f"{path} is not a safetensors file.")
    weights: dict[str, mx.array] = raw
    if _is_pytorch(header):
        weights = {
            new: part for name, array in raw.items() for new, part in to_mlx_layout(name, array, lm_config.dep_q)
        }
    del raw
    lm = Lm(lm_config, *_hidden_widths(weights))
    quantizations = _check(path, lm, weights)
    _quantize(lm, quantizations)
    return _fill(lm, weights, dtype)


def _check_kind(path: Path, header: Mapping[str, TensorInfo]) -> None:
    if any(name.startswith(("encoder.", "decoder.", "quantizer.")) for name in header):
        raise InputError(f"{path} is a Mimi codec, not a language model; give it as --mimi.")
    if "out_norm.weight" not in header and not _is_pytorch(header):
        raise InputError(f"{path} is not a Moshi language model: it has no tensor out_norm.weight.")


def _check_quantized(path: Path, header: Mapping[str, TensorInfo], quantized: int | None) -> None:
    if quantized is None:
        return
    bits = file_bits(header)
    if bits is None:
        raise InputError(f"{path} is not quantized; leave --quantized {quantized} out.")
    if bits != quantized:
        raise InputError(
            f"{path} is quantized to {bits} bits, not {quantized}; give --quantized {bits}, or leave it out."
        )


def file_bits(header: Mapping[str, TensorInfo]) -> int | None:
    """Read off a header the bits of the text head's weights, for which no configuration is needed; None: not quantized.

    `out_norm` tells the width of the rows that are packed there.
    """
    weight, norm = header.get("text_linear.weight"), header.get("out_norm.weight")
    if weight is None or norm is None or weight.dtype != "U32" or len(weight.shape) != 2 or norm.shape in ((), (0,)):
        return None
    return weight.shape[1] * 32 // norm.shape[0]


def _hidden_widths(weights: Mapping[str, mx.array]) -> tuple[int | None, int | None]:
    """Read the feed-forward widths, of the temporal transformer and of the depformer, off the tensors' shapes."""

    def half_rows(name: str) -> int | None:
        array = weights.get(name)
        return array.shape[0] // 2 if array is not None and array.ndim == 2 else None

    return (
        half_rows("transformer.layers.0.gating.linear_in.weight"),
        half_rows("depformer.slices.0.transformer.layers.0.gating.linear_in.weight"),
    )


def _check(path: Path, lm: Lm, weights: Mapping[str, mx.array]) -> dict[str, Quantization]:
    """Compare the stored tensors with what `lm` needs; return the modules that are quantized, and how."""
    modules = dict(lm.named_modules())
    quantizations: dict[str, Quantization] = {}
    missing, expected = [], set()
    for name, parameter in cast("list[tuple[str, mx.array]]", tree_flatten(lm.parameters())):
        expected.add(name)
        array = weights.get(name)
        if array is None:
            missing.append(name)
            continue
        shape = parameter.shape
        module = name.removesuffix(".weight")
        if f"{module}.scales" in weights and isinstance(modules[module], nn.Linear | nn.Embedding):
            expected |= {f"{module}.scales", f"{module}.biases"}
            if f"{module}.biases" not in weights:
                missing.append(f"{module}.biases")
                continue
            quantizations[module] = _quantization(path, module, weights, shape)
        elif array.shape != shape:
            raise InputError(f"{path}: {name} has shape {list(array.shape)}; {list(shape)} is expected.")
        elif not mx.issubdtype(array.dtype, mx.floating):
            raise InputError(f"{path}: {name} is of type {_dtype_name(array)}; a float is expected.")
    for names, what in ((missing, "is missing"), (sorted(set(weights) - expected), "does not belong to this model")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            verb = what if not more else what.replace("is ", "are ").replace("does ", "do ")
            raise InputError(f"{path} does not fit the configuration: {names[0]}{more} {verb}.")
    return quantizations


def _quantization(path: Path, module: str, weights: Mapping[str, mx.array], shape: tuple[int, ...]) -> Quantization:
    weight, scales, biases = (weights[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    rows, columns = shape
    fits = weight.ndim == scales.ndim == 2 and scales.shape == biases.shape and scales.shape[1] > 0
    if fits and weight.shape[0] == scales.shape[0] == rows:
        group_size, rest = divmod(columns, scales.shape[1])
        bits, rest_bits = divmod(weight.shape[1] * 32, columns)
        if not rest and not rest_bits and bits in _BITS and group_size in _GROUPS:
            if weight.dtype != mx.uint32 or not mx.issubdtype(scales.dtype, mx.floating):
                raise InputError(
                    f"{path}: {module} is packed as {_dtype_name(weight)} with scales as {_dtype_name(scales)}; "
                    "uint32 with floats is expected."
                )
            return Quantization(bits, group_size)
    raise InputError(
        f"{path}: {module} has a quantized weight {list(weight.shape)} with scales {list(scales.shape)}, "
        f"which does not fit the expected shape {list(shape)}."
    )


def _dtype_name(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _quantize(lm: Lm, quantizations: Mapping[str, Quantization]) -> None:
    def how(name: str, _: nn.Module) -> bool | dict[str, int]:
        found = quantizations.get(name)
        return {"bits": found.bits, "group_size": found.group_size} if found else False

    if quantizations:
        nn.quantize(lm, class_predicate=how)


def _fill(lm: Lm, weights: dict[str, mx.array], dtype: mx.Dtype) -> Lm:
    """Put the weights into `lm`, and read them from the file one layer at a time, so that nothing is held twice."""
    for name, array in weights.items():
        if mx.issubdtype(array.dtype, mx.floating):
            weights[name] = array.astype(dtype)
    lm.load_weights(list(weights.items()), strict=True)
    weights.clear()
    lm.freeze()
    lm.eval()
    for layer in [*lm.transformer.layers, *lm.depformer.slices]:
        mx.eval(layer.parameters())
    mx.eval(lm.parameters())
    return lm
