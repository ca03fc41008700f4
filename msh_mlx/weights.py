"""Checkpoints: the one place that checks a language model's tensors, and loads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .config import LmConfig
from .errors import InputError
from .layout import is_pytorch, to_mlx_layout
from .lora import SCALING, Adapter, read_lora
from .models.lm import Lm
from .tensors import FLOATS, TensorInfo, read_header, read_tensor

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_CHUNK = 1 << 20  # weights that are computed with at a time
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"} | {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed: `scale · n + bias` per group of `group_size` along a row, n of `bits` bits."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Checkpoint:
    """A language model's file that was checked; no tensor has been read.

    Attributes
    ----------
    path, config
        The file, and what it is said to hold.
    lm
        The model without its weights: those that it has are never computed, and nothing in it is quantized.
    shapes
        The shapes of the modules' weights, unpacked, by the modules' names, in the order of the model.
    tensors
        Where the tensors are, by their names in the MLX layout. Several may share a place.
    quantizations
        The modules whose weights are quantized, and how.
    """

    path: Path
    config: LmConfig
    lm: Lm
    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, TensorInfo]
    quantizations: dict[str, Quantization]

    def parts(self, module: str) -> dict[str, TensorInfo]:
        """Say where the tensors of a module are: "weight", and "scales" and "biases" of one that is quantized."""
        names = ("weight", "scales", "biases") if module in self.quantizations else ("weight",)
        return {name: self.tensors[f"{module}.{name}"] for name in names}

    def adapters(self, lora: str | os.PathLike[str] | None, scaling: float) -> dict[str, Adapter]:
        """Read the adapters for this model from the file `lora`, as `read_lora` does; none if there is none."""
        if lora is None:
            return {}
        linear = {name for name, module in self.lm.named_modules() if isinstance(module, nn.Linear)}
        shapes = {name: shape for name, shape in self.shapes.items() if name in linear}
        return read_lora(lora, scaling, shapes, self.config.dep_q)

    def rows(self, module: str, adapter: Adapter | None = None) -> Iterator[tuple[int, mx.array]]:
        """Read a matrix some rows at a time: yield the first one's number, and the rows in float32.

        What is quantized is unpacked; what `adapter` adds is added.
        """
        rows, columns = self.shapes[module]
        how, parts = self.quantizations.get(module), self.parts(module)
        step = _rows_at_a_time(columns)
        for row in range(0, rows, step):
            weight, *rest = (read_tensor(self.path, part.rows(row, row + step)) for part in parts.values())
            if how:
                scales, biases = (part.astype(mx.float32) for part in rest)
                weight = mx.dequantize(weight, scales, biases, group_size=how.group_size, bits=how.bits)
            yield row, adapter.merge(weight, row) if adapter else weight.astype(mx.float32)

    def stored_rows(self, info: TensorInfo) -> Iterator[tuple[int, mx.array]]:
        """Read a matrix as it is stored, some rows at a time: yield the first one's number, and the rows."""
        step = _rows_at_a_time(info.shape[1])
        for row in range(0, info.shape[0], step):
            yield row, read_tensor(self.path, info.rows(row, row + step))


def _rows_at_a_time(columns: int) -> int:
    return max(1, _CHUNK // columns)


def open_checkpoint(
    path: str | os.PathLike[str],
    config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    quantized: int | None = None,
    *,
    lora: bool = False,
) -> Checkpoint:
    """Read a file's header and compare it with the configuration; errors and arguments are `load_lm`'s.

    With `lora` the configuration may say that there are adapters: they will be merged.
    """
    path = Path(path).expanduser()
    header = read_header(path)
    lm_config = LmConfig.of(config, lora=lora)
    _check_kind(path, header)
    _check_quantized(path, header, quantized)
    tensors = to_mlx_layout(header, lm_config.dep_q)
    lm = Lm(lm_config, *_hidden_widths(tensors))
    quantizations = _check(path, lm, tensors)
    shapes = {name.removesuffix(".weight"): parameter.shape for name, parameter in lm.named_parameters()}
    return Checkpoint(path, lm_config, lm, shapes, tensors, quantizations)


def default_dtype() -> mx.Dtype:
    """Choose the activations' dtype by the device: float32 on the CPU, where bfloat16 is ten times slower, else bfloat16."""
    return mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16


def load_lm(
    path: str | os.PathLike[str],
    config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    dtype: mx.Dtype | None = None,
    *,
    quantized: int | None = None,
    lora: str | os.PathLike[str] | None = None,
    lora_scaling: float = SCALING,
    progress: Callable[[float], None] | None = None,
) -> Lm:
    """Load a Moshi language model from a safetensors file in the MLX or the PyTorch layout.

    Which weights are quantized, with how many bits and in what groups, is read off the stored tensors. They are read one module
    after the other, so that beyond the weights as they are held there is never more than one module in memory.

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
    lora
        A file of adapters to add to the weights (`read_lora`), `lora_scaling` times. It is computed in float32; a weight that
        is quantized is so again afterwards, in the same way.
    progress
        Called with the fraction of the bytes that are loaded, from 0 to 1.

    Raises
    ------
    InputError
        A file or the configuration is wrong, or they do not fit each other; the message says which tensor.
    """
    checkpoint = open_checkpoint(path, config, quantized, lora=lora is not None)
    adapters = checkpoint.adapters(lora, lora_scaling)
    if dtype is None:
        dtype = default_dtype()
    lm = checkpoint.lm
    _quantize(lm, checkpoint.quantizations)
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    done = 0
    weights: list[tuple[str, mx.array]] = []
    for module in checkpoint.shapes:
        if progress:
            progress(done / total)
        arrays = _read_module(checkpoint, module, adapters.get(module), dtype)
        mx.eval(list(arrays.values()))
        weights += [(f"{module}.{part}", array) for part, array in arrays.items()]
        done += sum(info.nbytes for info in checkpoint.parts(module).values())
        mx.clear_cache()  # else what was in use for one module stays beside the next
    lm.load_weights(weights, strict=True)
    weights.clear()
    lm.freeze()
    lm.eval()
    lm.prepare()
    mx.clear_cache()
    if progress:
        progress(1.0)
    return lm


def _read_module(checkpoint: Checkpoint, module: str, adapter: Adapter | None, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Read a module's tensors as they are held, with `adapter` merged."""
    how, parts = checkpoint.quantizations.get(module), checkpoint.parts(module)
    if adapter is None:
        arrays = [read_tensor(checkpoint.path, info) for info in parts.values()]
        arrays = [array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array for array in arrays]
    else:
        pieces = []
        for _, rows in checkpoint.rows(module, adapter):
            weight = rows.astype(dtype)
            pieces.append(mx.quantize(weight, how.group_size, how.bits) if how else (weight,))
            mx.eval(pieces[-1])
        arrays = [mx.concatenate(list(column)) for column in zip(*pieces, strict=True)]
    return dict(zip(parts, arrays, strict=True))


def _check_kind(path: Path, header: Mapping[str, TensorInfo]) -> None:
    if any(name.startswith(("encoder.", "decoder.", "quantizer.")) for name in header):
        raise InputError(f"{path} is a Mimi codec, not a language model; give it as --mimi.")
    if "out_norm.weight" not in header and not is_pytorch(header):
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
    """Read off a header the bits of most of the weights, for which no configuration is needed; None: not quantized.

    A file may hold weights of several kinds: the first of those that make the temporal transformer large stands for them.
    `out_norm` tells the width of the rows that are packed there.
    """
    weight, norm = header.get("transformer.layers.0.gating.linear_in.weight"), header.get("out_norm.weight")
    if weight is None or norm is None or weight.dtype != "U32" or len(weight.shape) != 2 or norm.shape in ((), (0,)):
        return None
    return weight.shape[1] * 32 // norm.shape[0]


def _hidden_widths(tensors: Mapping[str, TensorInfo]) -> tuple[int | None, int | None]:
    """Read the feed-forward widths, of the temporal transformer and of the depformer, off the tensors' shapes."""

    def half_rows(name: str) -> int | None:
        array = tensors.get(name)
        return array.shape[0] // 2 if array is not None and len(array.shape) == 2 else None

    return (
        half_rows("transformer.layers.0.gating.linear_in.weight"),
        half_rows("depformer.slices.0.transformer.layers.0.gating.linear_in.weight"),
    )


def _check(path: Path, lm: Lm, tensors: Mapping[str, TensorInfo]) -> dict[str, Quantization]:
    """Compare the stored tensors with what `lm` needs; return the modules that are quantized, and how."""
    modules = dict(lm.named_modules())
    quantizations: dict[str, Quantization] = {}
    missing, expected = [], set()
    for name, parameter in lm.named_parameters():
        expected.add(name)
        array = tensors.get(name)
        if array is None:
            missing.append(name)
            continue
        shape = parameter.shape
        module = name.removesuffix(".weight")
        if f"{module}.scales" in tensors and isinstance(modules[module], nn.Linear | nn.Embedding):
            expected |= {f"{module}.scales", f"{module}.biases"}
            if f"{module}.biases" not in tensors:
                missing.append(f"{module}.biases")
                continue
            quantizations[module] = _quantization(path, module, tensors, shape)
        elif array.shape != shape:
            raise InputError(f"{path}: {name} has shape {list(array.shape)}; {list(shape)} is expected.")
        elif array.dtype not in FLOATS:
            raise InputError(f"{path}: {name} is of type {_dtype_name(array)}; a float of 16 or 32 bits is expected.")
    for names, what in ((missing, "is missing"), (sorted(set(tensors) - expected), "does not belong to this model")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            verb = what if not more else what.replace("is ", "are ").replace("does ", "do ")
            raise InputError(f"{path} does not fit the configuration: {names[0]}{more} {verb}.")
    return quantizations


def _quantization(path: Path, module: str, tensors: Mapping[str, TensorInfo], shape: tuple[int, ...]) -> Quantization:
    weight, scales, biases = (tensors[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    rows, columns = shape
    fits = len(weight.shape) == len(scales.shape) == 2 and scales.shape == biases.shape and scales.shape[1] > 0
    if fits and weight.shape[0] == scales.shape[0] == rows:
        group_size, rest = divmod(columns, scales.shape[1])
        bits, rest_bits = divmod(weight.shape[1] * 32, columns)
        if not rest and not rest_bits and bits in BITS and group_size in GROUP_SIZES:
            if weight.dtype != "U32" or scales.dtype not in FLOATS or biases.dtype not in FLOATS:
                raise InputError(
                    f"{path}: {module} is packed as {_dtype_name(weight)} with scales as {_dtype_name(scales)}; "
                    "uint32 with floats is expected."
                )
            return Quantization(bits, group_size)
    raise InputError(
        f"{path}: {module} has a quantized weight {list(weight.shape)} with scales {list(scales.shape)}, "
        f"which does not fit the expected shape {list(shape)}."
    )


def _dtype_name(info: TensorInfo) -> str:
    return _DTYPE_NAMES.get(info.dtype, info.dtype)


def _quantize(lm: Lm, quantizations: Mapping[str, Quantization]) -> None:
    def how(name: str, _: nn.Module) -> bool | dict[str, int]:
        found = quantizations.get(name)
        return {"bits": found.bits, "group_size": found.group_size} if found else False

    if quantizations:
        nn.quantize(lm, class_predicate=how)
