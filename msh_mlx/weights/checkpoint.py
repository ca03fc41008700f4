"""Checkpoints: check the tensors of a language model, and read them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..format import FRAME_SECONDS
from ..model.architecture import SCHEDULE, Architecture
from ..model.conditions import Conditioner, Conditions
from ..model.config import LmConfig
from ..model.families import Family, family_of, personaplex
from ..model.families.others import other_with
from ..model.parameters import CONDITIONS, Parameter, parameters
from ..model.ranges import CONTEXT
from ..system.inputs import brief, check_file
from ..system.places import user_path
from .beside import is_merged
from .kinds import check_lm, kind_of
from .layout import copies, is_pytorch, to_mlx_layout
from .lora import Change, Scaling, find_scaling, read_lora
from .packing import Quantization, unpacked
from .safetensors import FLOATS, TensorInfo, as_float32, read_header, read_tensor

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_LARGE = "transformer.layers.0.gating.linear_in"  # one of the modules that hold most of the weights
_CHUNK = 1 << 20  # weights that are changed or unpacked at a time
_COMPARED = 1 << 24  # bytes that are compared at a time
_LARGEST = float(np.finfo(np.float32).max) / 2  # of a changed weight: packing takes the difference of two
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"} | {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Checkpoint:
    """A language model's file with a checked header. No tensor has been read.

    It holds no weights. It can be handed to another thread, and loaded any number of times.

    Attributes
    ----------
    path, config
        The file, and the configuration that its tensors fit.
    shapes
        The shape of each module's weight, unpacked, by the module's name, in the order of the model.
    linear
        The names of the linear layers. The other matrices are embeddings.
    tensors
        Where the tensors are in the file, by their names in the MLX layout. Several may share a place.
    quantizations
        How weights are quantized, by the names of the modules. A module that is missing is not quantized.
    stamp
        Identifies the file as it was checked. `check_unchanged` refuses a file that was replaced or changed since.
    slices
        The number of the depformer's weights that each codebook in the file uses, those included that are not run.
    copied
        Tensors in the file that have to be the same as others of the model, by their names: where they are, and the others'.
    lora, scaling
        The file of adapters to merge, and the factor that they are added with; None: no adapters.
    """

    path: Path
    config: LmConfig
    shapes: dict[str, tuple[int, ...]]
    linear: frozenset[str]
    tensors: dict[str, TensorInfo]
    quantizations: dict[str, Quantization]
    stamp: tuple[int, ...]
    slices: tuple[int, ...]
    copied: dict[str, tuple[TensorInfo, str]]
    lora: Path | None = None
    scaling: Scaling | None = None

    @property
    def family(self) -> Family:
        """The family of the model, which says what it is for."""
        return family_of(self.config)

    @property
    def bits(self) -> int:
        """The bits of most of the weights, as `file_bits` counts them; 16 if they are not quantized."""
        how = self.quantizations.get(_LARGE)
        return how.bits if how else 16

    def parts(self, module: str) -> dict[str, TensorInfo]:
        """Return where a module's tensors are in the file: "weight"; if it is quantized, also "scales" and "biases".

        A parameter that is not a weight, such as a bias, stands for itself, under "".
        """
        names = ("weight", "scales", "biases") if module in self.quantizations else ("weight",)
        if f"{module}.weight" not in self.tensors:
            return {"": self.tensors[module]}
        return {name: self.tensors[f"{module}.{name}"] for name in names}

    @property
    def is_wide(self) -> bool:
        """Whether the model's numbers are float32. Its last norm tells: norms are never packed."""
        return self.parts("out_norm")["weight"].dtype == "F32"

    def held_bytes(self, item: int | None = None) -> int:
        """Return the bytes that the weights take in memory, with `item` bytes for each float; None: as they are stored."""
        total = 0
        for module in self.shapes:
            size = 4 if module.startswith(CONDITIONS) else item
            for info in self.parts(module).values():
                total += math.prod(info.shape) * size if size and info.dtype in FLOATS else info.nbytes
        return total

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The shapes `[out, in]` of linear layers and embeddings. Only these can be quantized or changed by adapters."""
        return {name: shape for name, shape in self.shapes.items() if len(shape) == 2}

    def check_unchanged(self) -> None:
        """Raise InputError if the file has changed since it was checked."""
        if _stamp(self.path) != self.stamp:
            raise InputError(f"{self.path} has changed since it was checked", "start again")

    def conditions(self) -> Conditions:
        """Read the weights of the conditions."""
        weights = {}
        for module in self.shapes:
            if module.startswith(CONDITIONS):
                for part, info in self.parts(module).items():
                    name = f"{module}.{part}" if part else module
                    weights[name.removeprefix(CONDITIONS)] = as_float32(read_tensor(self.path, info))
        return Conditions(self.config.conditioners, weights)

    def changes(self) -> dict[str, Change]:
        """Read the changes that the adapters make, by the modules' names; empty without adapters."""
        if self.lora is None or self.scaling is None:
            return {}
        # Adapters may be for all that PersonaPlex predicts, whether or not the file still has it.
        slices = tuple(range(self.config.n_q)) if self.family.name == personaplex.NAME else self.slices
        return read_lora(self.lora, self.scaling.value, self.matrices, slices, self.linear, run=self.config.dep_q)

    def check_copies(self) -> None:
        """Check that weights that the configuration says are shared are the same wherever the file repeats them.

        Raises
        ------
        InputError
            They differ.
        """
        with self.path.open("rb") as file:
            for name, (copy, original) in self.copied.items():
                for begin in range(0, copy.nbytes, _COMPARED):
                    pieces = []
                    for info in (copy, self.tensors[original]):
                        file.seek(info.begin + begin)
                        pieces.append(file.read(min(_COMPARED, copy.nbytes - begin)))
                    if pieces[0] != pieces[1]:
                        raise _differ(self.path, name, original)

    def rows(self, module: str, change: Change | None = None) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Read a matrix some rows at a time, with `change` made. Yield the number of the first row, and the rows in float32.

        Quantized weights are unpacked.

        Raises
        ------
        InputError
            A number is not finite after the change, or too large to be packed.
        """
        rows, columns = self.shapes[module]
        how, parts = self.quantizations.get(module), self.parts(module)
        step = _rows_at_a_time(columns)
        for row in range(0, rows, step):
            weight, *rest = (read_tensor(self.path, part.rows(row, row + step)) for part in parts.values())
            values = unpacked(weight, as_float32(rest[0]), as_float32(rest[1]), how) if how else as_float32(weight)
            if change:
                values = change.merge(values, row)
            if change and not (np.abs(values) <= _LARGEST).all():
                raise InputError(
                    f"{change.path} makes numbers of {module} too large, infinite or NaN",
                    "give another file, or --lora-scaling",
                )
            yield row, values

    def stored_rows(self, info: TensorInfo) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Read a matrix as `read_tensor` does, some rows at a time. Yield the number of the first row, and the rows."""
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
    lora: str | os.PathLike[str] | None = None,
    lora_scaling: float | None = None,
    context: float | None = None,
) -> Checkpoint:
    """Read a file's header, and compare it with the configuration. Arguments and errors are those of `load_lm`."""
    path = user_path(path)
    lm_config = LmConfig.of(config, lora=lora is not None or is_merged(path))
    stamp = _stamp(path)
    header = read_header(path)
    check_lm(path, header)
    try:
        _check_types(path, header)
        _check_quantized(path, header, quantized)
        stored = sizes(header)["dep_q"]
        lm_config = as_stored(lm_config, header)
        if context is not None:
            lm_config = replace(lm_config, context=_steps(context, lm_config.context))
        slices = lm_config.slices if stored <= lm_config.dep_q else tuple(range(stored))
        _check_sizes(path, header, lm_config)
        tensors = to_mlx_layout(header, slices, lm_config.dep_q)
        copied = {name: (tensors.pop(name), original) for name, original in copies(tensors, slices).items()}
        for name, (copy, original) in copied.items():
            info = tensors.get(original)
            if info is None or (info.dtype, info.shape) != (copy.dtype, copy.shape):
                raise _differ(path, name, original)
        wanted = parameters(lm_config, *hidden_widths(tensors))
        quantizations = _check(path, wanted, tensors)
    except InputError:
        # For a model of another family, name the family: the tensor that does not fit would help nobody.
        said = family_of(lm_config)
        if (family := _family(header)) not in (None, said):
            what = f"{path} is {family.title}, and its configuration is that of {said.title}"
            raise InputError(what, "give the model's own with --config") from None
        raise
    shapes = {one.name.removesuffix(".weight"): one.shape for one in wanted}
    linear = frozenset(one.module for one in wanted if one.kind == "linear")
    adapters = (user_path(lora), find_scaling(lora, lm_config, lora_scaling)) if lora is not None else (None, None)
    return Checkpoint(path, lm_config, shapes, linear, tensors, quantizations, stamp, slices, copied, *adapters)


def _steps(seconds: float, most: int) -> int:
    """Return the steps of a window of some seconds, at most those of the model's."""
    if not CONTEXT.has(seconds):
        raise InputError(f"The window of {brief(seconds)} seconds is not {CONTEXT}.")
    return min(most, int(min(seconds, 1e6) / FRAME_SECONDS))


def as_stored(config: LmConfig, header: Mapping[str, TensorInfo]) -> LmConfig:
    """Return a configuration with what only the file tells: that a PersonaPlex predicts the user's codes, too."""
    found = sizes(header)
    stored = found["dep_q"]
    if config.dep_q < stored == found["n_q"] == config.n_q:
        return cast(LmConfig, personaplex.adapted(replace(config, dep_q=stored)))
    return config


def _differ(path: Path, name: str, original: str) -> InputError:
    return InputError(
        f"{path}: {name} and {original} differ, and the configuration's {SCHEDULE} says that they are the same",
        "give the model's own configuration with --config",
    )


def _stamp(path: Path) -> tuple[int, ...]:
    check_file(path)
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _family(header: Mapping[str, TensorInfo]) -> Family | None:
    """Return the family of a model by its tensors alone; None: they do not tell."""
    found = sizes(header)
    try:
        return family_of(
            Architecture(
                n_q=found["n_q"],
                dep_q=found["dep_q"],
                delays=(0,) * (1 + found["n_q"]),
                demux_second_stream=any(".out1." in name for name in header),
                depformer_norm="layer_norm" if any(map(_NORMED.match, header)) else None,
                conditioners={match[1]: Conditioner(1) for name in header if (match := _CONDITIONER.match(name))},
            )
        )
    except InputError:
        return None


def describe(header: Mapping[str, TensorInfo]) -> str:
    """Say what a file is, by its tensors alone, such as "a Moshi language model in MLX's layout, 4 bits in groups of 32"."""
    if other := other_with(header):
        return other.title
    kind = kind_of(header)
    if kind != "lm":
        others = {
            "mimi": "a Mimi codec",
            "lora": "LoRA adapters",
            "Transformers' lm": "a model with the Transformers library's names",
            "Transformers' mimi": "a Mimi codec with the Transformers library's names",
        }
        return others.get(kind or "", "not a file of Moshi's")
    family, layout = _family(header), "PyTorch's" if is_pytorch(header) else "MLX's"
    what = f"{family.title if family else 'a language model'} in {layout} layout"
    bits = file_bits(header)
    if bits is None:
        dtypes = sorted({_dtype_name(info) for info in header.values() if "F" in info.dtype})
        return f"{what}, not quantized ({' and '.join(dtypes) or 'no floats'})"
    scales = header.get(f"{_LARGE}.scales")
    groups = scales.shape[-1] if scales is not None and scales.shape else 0
    size = f" in groups of {header['out_norm.weight'].shape[0] // groups}" if groups else ""
    return f"{what}, {bits} bits{size}"


def _check_types(path: Path, header: Mapping[str, TensorInfo]) -> None:
    """Check the types of all tensors. This comes before the check of shapes, since another type may change a shape, too."""
    for name, info in header.items():
        if info.dtype not in FLOATS:
            is_packed = f"{name.removesuffix('.weight')}.scales" in header
            if not (is_packed and info.dtype == "U32"):
                raise _wrong_type(path, name, info, is_packed=is_packed)


def _wrong_type(path: Path, name: str, info: TensorInfo, *, is_packed: bool) -> InputError:
    expected = "uint32" if is_packed else "a float of 16 or 32 bits"
    return InputError(f"{path}: {name} is of type {_dtype_name(info)}", f"{expected} is expected")


def _check_quantized(path: Path, header: Mapping[str, TensorInfo], quantized: int | None) -> None:
    if quantized is None:
        return
    bits = file_bits(header)
    if bits is None:
        raise InputError(f"{path} is not quantized: it is {describe(header)}", f"leave --quantized {quantized} out")
    if bits != quantized:
        raise InputError(
            f"{path} is quantized to {bits} bits, not {quantized}: it is {describe(header)}",
            f"give --quantized {bits}, or leave it out",
        )


# What is counted, and the names by which it is, in either layout.
_COUNTED = {
    "num_layers": re.compile(r"transformer\.layers\.(\d+)\."),
    "n_q": re.compile(r"(?:audio_embs|emb)\.(\d+)\."),
    "dep_q": re.compile(r"(?:depformer\.slices\.(?=\d+\.linear_out)|linears\.)(\d+)\."),
    "depformer_num_layers": re.compile(r"depformer\.(?:slices\.0\.transformer\.)?layers\.(\d+)\."),
    "extra_heads_num_heads": re.compile(r"extra_heads\.(\d+)\."),
}
_CONDITIONER = re.compile(r"condition_provider\.conditioners\.(\w+)\.")
_NORMED = re.compile(r"depformer_norms\.|depformer\.slices\.\d+\.norm\.")


def sizes(header: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Read the sizes of a language model off its tensors, as far as they tell. The names are the keys of `LmConfig`."""
    counted: dict[str, set[str]] = {key: set() for key in _COUNTED}
    for name in header:
        for key, pattern in _COUNTED.items():
            if match := pattern.match(name):
                counted[key].add(match[1])
    found = {key: len(numbers) for key, numbers in counted.items()}
    norm = header.get("out_norm.weight") or header.get("out_norm.alpha")
    if norm is not None:
        found["dim"] = math.prod(norm.shape)
    for key, more, names in (
        ("text_card", 1, ("text_emb.weight",)),
        ("card", 1, ("audio_embs.0.weight", "emb.0.weight")),
        ("depformer_dim", 0, ("depformer.slices.0.linear_in.weight", "depformer_in.0.weight")),
    ):
        for name in names:
            if (info := header.get(name)) is not None and len(info.shape) == 2:
                found[key] = info.shape[0] - more
    return found


def _check_sizes(path: Path, header: Mapping[str, TensorInfo], config: LmConfig) -> None:
    """Compare the sizes of the tensors with the configuration, before a model of the configuration's sizes is made."""
    wanted = {key: getattr(config, key) for key in (*_COUNTED, "dim", "text_card", "card", "depformer_dim")}
    if not config.dep_q:
        wanted |= {"depformer_num_layers": 0}
    other = {key: size for key, size in sizes(header).items() if size != wanted[key]}
    if wanted["dep_q"] < other.get("dep_q", 0) == config.n_q:  # the others predict the user's codes, and are not run
        del other["dep_q"]
    if other:
        found, said = (
            ", ".join(f"{key} = {value}" for key, value in values.items())
            for values in (other, {key: wanted[key] for key in other})
        )
        raise InputError(
            f"{path} does not fit the configuration: the shapes of its tensors say {found}, and the configuration {said}",
            "give the model's own with --config",
        )


def file_bits(header: Mapping[str, TensorInfo]) -> int | None:
    """Read the bits of most weights off a header, without a configuration. None: they are not quantized.

    A file may hold weights with different bits. Those of the first feed-forward stand for all. The length of `out_norm` tells
    how many numbers are packed into a row.
    """
    weight, norm = header.get(f"{_LARGE}.weight"), header.get("out_norm.weight")
    if (
        weight is None
        or norm is None
        or weight.dtype != "U32"
        or len(weight.shape) != 2
        or not all(norm.shape[:1] or (0,))
    ):
        return None
    return weight.shape[1] * 32 // norm.shape[0]


def hidden_widths(tensors: Mapping[str, TensorInfo]) -> tuple[int | None, int | None]:
    """Read the widths of the feed-forwards off the tensors' shapes: the temporal transformer's, and the depformer's."""

    def half_rows(name: str) -> int | None:
        array = tensors.get(name)
        # An empty tensor may claim any shape.
        fits = array is not None and len(array.shape) == 2 and 0 < array.shape[0] < 1 << 24
        return array.shape[0] // 2 if array is not None and fits else None

    return (
        half_rows(f"{_LARGE}.weight"),
        half_rows("depformer.slices.0.transformer.layers.0.gating.linear_in.weight"),
    )


def _check(path: Path, wanted: Sequence[Parameter], tensors: Mapping[str, TensorInfo]) -> dict[str, Quantization]:
    """Compare the stored tensors with those that are wanted. Return how weights are quantized, by the modules' names."""
    quantizations: dict[str, Quantization] = {}
    missing, expected = [], set()
    for one in wanted:
        name, module, shape = one.name, one.module, one.shape
        expected.add(name)
        array = tensors.get(name)
        if array is None:
            missing.append(name)
            continue
        if f"{module}.scales" in tensors and one.kind != "other":
            expected |= {f"{module}.scales", f"{module}.biases"}
            if f"{module}.biases" not in tensors:
                missing.append(f"{module}.biases")
                continue
            quantizations[module] = _quantization(path, module, tensors, shape)
        elif array.shape != shape:
            raise InputError(f"{path}: {name} has shape {list(array.shape)}", f"{list(shape)} is expected")
    surplus = sorted(set(tensors) - expected)
    wrong = [_listed(missing, "is missing", "are missing")] if missing else []
    wrong += [_listed(surplus, "does not belong to this model", "do not belong to this model")] if surplus else []
    if wrong:
        raise InputError(f"{path} does not fit the configuration: {', and '.join(wrong)}.")
    return quantizations


def _listed(names: list[str], one: str, several: str) -> str:
    if len(names) == 1:
        return f"{names[0]} {one}"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} ({len(names)} tensors) {several}"


def _quantization(path: Path, module: str, tensors: Mapping[str, TensorInfo], shape: tuple[int, ...]) -> Quantization:
    weight, scales, biases = (tensors[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    if weight.dtype != "U32":
        raise _wrong_type(path, f"{module}.weight", weight, is_packed=True)
    rows, columns = shape
    fits = len(weight.shape) == len(scales.shape) == 2 and scales.shape == biases.shape and scales.shape[1] > 0
    if fits and weight.shape[0] == scales.shape[0] == rows:
        group_size, rest = divmod(columns, scales.shape[1])
        bits, rest_bits = divmod(weight.shape[1] * 32, columns)
        if not rest and not rest_bits and bits in BITS and group_size in GROUP_SIZES:
            return Quantization(bits, group_size)
    raise InputError(
        f"{path}: {module} has a quantized weight {list(weight.shape)} with scales {list(scales.shape)}, "
        f"which does not fit the expected shape {list(shape)}."
    )


def _dtype_name(info: TensorInfo) -> str:
    return _DTYPE_NAMES.get(info.dtype, info.dtype)
