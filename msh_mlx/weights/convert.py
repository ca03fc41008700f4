"""Convert a language model's file: to other bits, with adapters merged, a few rows at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..model.config import LmConfig, read_config
from ..model.engine import LanguageModel, Manner
from ..model.parameters import CONDITIONS
from ..model.sampling import Sampler, TextSampler
from ..model.steering import Steering
from ..system.newfile import NewFile, check_outputs, file_output
from ..system.places import user_path
from .beside import NAME_KEYS, config_beside, names_in
from .checkpoint import BITS, GROUP_SIZES, Checkpoint, open_checkpoint
from .load import load_lm
from .lora import Change, Scaling
from .packing import Quantization, packed
from .safetensors import TensorInfo, TensorWriter, as_bfloat16, as_float32, read_tensor

Logits = npt.NDArray[np.float64]
PLAIN = 16  # bits of a weight that is not quantized: bfloat16
_CHECK_STEPS = 48


@dataclass(frozen=True)
class Rule:
    """The bits of the modules whose names in the MLX layout fit `pattern`, which is like a shell's (`*emb*`)."""

    pattern: str
    bits: int


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote: the paths of the model and its configuration, and the bytes before and after.

    `unpacked` are the modules that should have been quantized, but stay bfloat16, because their rows are not a whole number of
    groups. `scaling` is the factor that the adapters were added with; None: there were none. `left_out` counts the codebooks
    whose prediction was not written, because it is never run: PersonaPlex's of the user.
    """

    path: Path
    config: Path
    bytes_before: int
    bytes_after: int
    unpacked: tuple[str, ...]
    scaling: Scaling | None
    left_out: int = 0


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bits: int,
    group_size: int = 64,
    keep: Sequence[Rule] = (),
    config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    lora_scaling: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Converted:
    """Write the model in `path`, of either layout, to `out` in the MLX layout, and its configuration beside it.

    Only a few rows are in memory at a time, whatever the model's size. Both files appear when they are complete. Norms are
    bfloat16, and conditions float32. A weight that is quantized in the wanted way already is copied; another quantized weight
    is unpacked first. What is never run is not written: PersonaPlex's prediction of the user's codes. Weights that several
    codebooks share are written once, as the first one's.

    Parameters
    ----------
    bits
        2, 3, 4, 5, 6 or 8, or 16 for bfloat16.
    group_size
        How many weights share a scale: 32, 64 or 128.
    keep
        Other bits for some modules. The first rule that fits a module's name counts.
    config
        As for `load_lm`.
    lora, lora_scaling
        Adapters to merge, as for `load_lm`.
    progress
        Called with the fraction of the bytes that have been converted, from 0 to 1.

    Raises
    ------
    InputError
        A file, the configuration or a number is wrong, `out` is one of the inputs or cannot be written, a rule fits nothing,
        or a weight has fewer bits than wanted already.
    """
    for wanted in (bits, *(rule.bits for rule in keep)):
        if wanted not in (*BITS, PLAIN):
            raise InputError(f"Weights cannot have {wanted} bits, only {', '.join(map(str, BITS))} or {PLAIN}.")
    if group_size not in GROUP_SIZES:
        raise InputError(f"Groups cannot have {group_size} weights, only {', '.join(map(str, GROUP_SIZES))}.")
    out = file_output(os.fspath(out), "The model")
    out_config = config_beside(out)
    inputs = [file for file in (path, config, lora) if isinstance(file, str | os.PathLike)]
    checkpoint = open_checkpoint(path, config, lora=lora, lora_scaling=lora_scaling)
    changes = checkpoint.changes()
    check_outputs([out, out_config], [user_path(file) for file in inputs])
    targets, unpacked = _targets(checkpoint, bits, group_size, keep)
    checkpoint.check_copies()
    written = {
        (f"{module}.{part}" if part else module): info
        for module in checkpoint.shapes
        for part, info in _packed(checkpoint, module, targets.get(module)).items()
    }
    total, done = sum(info.nbytes for info in checkpoint.tensors.values()), 0
    with NewFile(out) as new, NewFile(out_config) as new_config:
        # With the names of codec and tokenizer: models of one family have different ones.
        values = checkpoint.config.to_dict() | {NAME_KEYS[role]: name for role, name in _names(config).items()}
        new_config.file.write(json.dumps(values, indent=1).encode() + b"\n")
        writer = TensorWriter(new.file, written)
        for module in checkpoint.shapes:
            if progress:
                progress(done / total)
            for row, part, array in _rows(checkpoint, module, targets.get(module), changes.get(module)):
                writer.write(f"{module}.{part}" if part else module, array, row)
            done += sum(info.nbytes for info in checkpoint.parts(module).values())
        new.commit()
        new_config.commit()
    if progress:
        progress(1.0)
    return Converted(
        out,
        out_config,
        checkpoint.path.stat().st_size,
        out.stat().st_size,
        tuple(unpacked),
        checkpoint.scaling,
        len(checkpoint.slices) - checkpoint.config.dep_q,
    )


def _names(config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, str]:
    if config is None or isinstance(config, LmConfig):
        return {}
    return names_in(config if isinstance(config, Mapping) else read_config(config))


def _targets(
    checkpoint: Checkpoint, bits: int, group_size: int, keep: Sequence[Rule]
) -> tuple[dict[str, Quantization], list[str]]:
    """Choose how to quantize each module; one that is left out is not quantized. List those that should be, but cannot."""
    targets: dict[str, Quantization] = {}
    unpacked: list[str] = []
    fitting: set[str] = set()
    for module, (_, columns) in checkpoint.matrices.items():
        if module.startswith(CONDITIONS):
            continue
        fits = [rule for rule in keep if fnmatchcase(module, rule.pattern)]
        fitting |= {rule.pattern for rule in fits}
        wanted = fits[0].bits if fits else bits
        stored = checkpoint.quantizations.get(module)
        if wanted == PLAIN:
            continue
        if stored and stored.bits < wanted:
            raise InputError(
                f"{checkpoint.path}: {module} has {stored.bits} bits, and {wanted} would only make it larger",
                f"convert it to {stored.bits} bits or fewer, or to 16",
            )
        if columns % group_size:
            unpacked.append(module)
        else:
            targets[module] = Quantization(wanted, group_size)
    for rule in keep:
        if rule.pattern not in fitting:
            some = ", ".join(["text_emb", "audio_embs.0", "transformer.layers.0.gating.linear_in", "text_linear"])
            raise InputError(f"No weight's name fits {rule.pattern!r}", f"names are {some} and the like")
    return targets, sorted(unpacked)


def _packed(checkpoint: Checkpoint, module: str, how: Quantization | None) -> dict[str, TensorInfo]:
    """Describe the tensors that hold a module's weight in the new file."""
    shape = checkpoint.shapes[module]
    if how is None:
        dtype = "F32" if module.startswith(CONDITIONS) else "BF16"
        return {"" if "" in checkpoint.parts(module) else "weight": TensorInfo(dtype, shape)}
    rows, columns = shape
    scales = TensorInfo("BF16", (rows, columns // how.group_size))
    return {"weight": TensorInfo("U32", (rows, columns * how.bits // 32)), "scales": scales, "biases": scales}


def _rows(
    checkpoint: Checkpoint, module: str, how: Quantization | None, change: Change | None
) -> Iterator[tuple[int, str, npt.NDArray[Any]]]:
    """Yield pieces of a module's tensors to write: the number of the first row, the name of the part, the rows."""
    stored = as_float32 if module.startswith(CONDITIONS) else _in_bfloat16
    if len(checkpoint.shapes[module]) != 2:
        ((part, info),) = checkpoint.parts(module).items()
        yield 0, part, stored(read_tensor(checkpoint.path, info))
        return
    if how and how == checkpoint.quantizations.get(module) and change is None:
        for part, info in checkpoint.parts(module).items():
            for row, array in checkpoint.stored_rows(info):
                yield row, part, array if part == "weight" else _in_bfloat16(array)
        return
    for row, weight in checkpoint.rows(module, change):
        # The numbers that are packed are those that a file without packing would hold.
        arrays = packed(as_float32(as_bfloat16(weight)), how) if how else (stored(weight),)
        for part, array in zip(_packed(checkpoint, module, how), arrays, strict=True):
            yield row, part, array


def _in_bfloat16(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return numbers if numbers.dtype == np.uint16 else as_bfloat16(as_float32(numbers))


# ---- the check -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Divergence:
    """How much the text logits of two models differ, over `steps` steps of the same input.

    `largest` is the largest absolute difference of a logit. `kl` is the mean Kullback-Leibler divergence of the second model's
    distribution from the first one's, in nats. `agree` is the share of steps in which both have the same likeliest token.
    """

    steps: int
    largest: float
    kl: float
    agree: float


def diverge(first: Logits, second: Logits) -> Divergence:
    """Compare text logits of the same input, each `[steps, text_card]`."""
    p, q = _log_softmax(first), _log_softmax(second)
    return Divergence(
        len(first),
        float(np.abs(first - second).max()),
        float((np.exp(p) * (p - q)).sum(1).mean()),
        float((first.argmax(1) == second.argmax(1)).mean()),
    )


def check(
    result: Converted,
    path: str | os.PathLike[str],
    config: LmConfig | Mapping[str, Any] | str | os.PathLike[str] | None,
    lora: str | os.PathLike[str] | None = None,
    lora_scaling: float | None = None,
    *,
    progress: Callable[[float], None] | None = None,
) -> Divergence:
    """Compare the model that `convert` wrote with its source, adapters merged in both. Arguments are those of `convert`."""

    def part(begin: float) -> Callable[[float], None] | None:
        return (lambda fraction: progress(begin + fraction / 2)) if progress else None

    # Load them one after the other, so that only one is in memory.
    first = text_logits(load_lm(path, config, lora=lora, lora_scaling=lora_scaling, progress=part(0)), _CHECK_STEPS)
    after = load_lm(result.path, result.config, progress=part(0.5))
    return diverge(first, text_logits(after, _CHECK_STEPS, first.argmax(1)))


def text_logits(
    lm: LanguageModel, steps: int, text: npt.NDArray[np.intp] | None = None, *, kv_bits: int | None = None
) -> Logits:
    """Run `lm` on seeded random codes and on `text` `[steps]`, else its own likeliest tokens. Return the text logits.

    The result is `[steps, text_card]` float64.
    """
    config = lm.config
    codes = np.random.default_rng(0).integers(0, config.card, (steps, config.n_q))
    greedy = Sampler(0)
    run = lm.converse(Manner(TextSampler(0), greedy, kv_bits, Steering(codebooks=0)))
    run.begin(0, None)
    rows, token = [], config.text_card
    for step in range(steps):
        run.step(step, np.array([token, *codes[step]], np.int32), np.zeros(0, np.int32))
        (said,) = run.take()
        rows.append(np.array(run.text_logits(), np.float64))
        token = int(said[0] if text is None else text[step])
    return np.stack(rows)


def _log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(1, keepdims=True)
    logs: Logits = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs
