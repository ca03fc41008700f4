"""Recognise what a safetensors file is by the names of its tensors, and refuse one that is not what was wanted."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from ..errors import InputError
from ..model.families.others import other_with
from ..system.inputs import ONE_FILE
from .layout import is_pytorch

Kind = Literal["lm", "mimi", "lora", "Transformers' lm", "Transformers' mimi"]

# Names of tensors in the Transformers library's form of Moshi, with or without its codec, and of Mimi.
_TRANSFORMERS_LM = re.compile(
    r"(decoder\.)?model\.(layers|embed_tokens)\.|decoder\.lm_head\.|(depth_decoder|audio_encoder|embed_tokens)\."
)
_TRANSFORMERS_MIMI = re.compile(
    r"(en|de)coder\.layers\.\d+\.(conv|block)\.|(en|de)coder_transformer\.layers\.|"
    r"quantizer\.(semantic|acoustic)_residual_vector_quantizer\."
)
# The names of files that hold one part of a model.
_PART = re.compile(r"-0*([1-9]\d*)-of-0*([2-9]|[1-9]\d+)\.safetensors$")
# Beginnings of names. A whole language model, or a whole codec, has tensors for each: the first modules, and the last.
_WHOLE = (
    ("text_emb.", "transformer.layers.0.", "out_norm.", "text_linear."),
    ("encoder.", "decoder.", "quantizer."),
)
_KYUTAIS = "hf:kyutai/moshiko-mlx-q4/"
_LM, _MIMI = f"{_KYUTAIS}model.q4.safetensors", f"{_KYUTAIS}tokenizer-e351c8d8-checkpoint125.safetensors"


def kind_of(names: Collection[str]) -> Kind | None:
    """Return the kind of a file with tensors of these names; None if it is not known."""
    if any(map(_TRANSFORMERS_LM.match, names)):
        return "Transformers' lm"
    if any(map(_TRANSFORMERS_MIMI.match, names)):
        return "Transformers' mimi"
    if any(name.startswith(("encoder.", "decoder.", "quantizer.")) for name in names):
        return "mimi"
    if "out_norm.weight" in names or is_pytorch(names):
        return "lm"
    return "lora" if any(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names) else None


def _part(path: Path, names: Collection[str]) -> str | None:
    """Return which part of a model a file is, such as "part 1 of 3", by its name. None: it is not a part, or it is complete."""
    part = _PART.search(path.name)
    if not part or any(all(any(n.startswith(b) for n in names) for b in beginnings) for beginnings in _WHOLE):
        return None
    return f"part {part[1]} of {part[2]}"


def check_lm(path: Path, names: Collection[str]) -> None:
    """Raise InputError for a file that is not a language model of the family, by the names of its tensors."""
    if other := other_with(names):
        raise InputError(f"{path} is {other.title}, which this program does not run", other.advice)
    if any(name.endswith(".weight_scb") for name in names):
        raise InputError(
            f"{path} is quantized in PyTorch's own way, which this program does not read",
            f"give one for MLX, such as {_LM}, or one with 16 bits a weight, which 'msh-mlx convert' quantizes",
        )
    kind = kind_of(names)
    if kind == "Transformers' lm":
        raise InputError(
            f"{path} has the Transformers library's names of tensors", f"give Kyutai's own file, such as {_LM}"
        )
    if kind == "Transformers' mimi":
        raise InputError(
            f"{path} is a Mimi codec with the Transformers library's names of tensors, not a language model",
            f"give Kyutai's own file of it as --mimi, such as {_MIMI}, and the model as --model",
        )
    if part := _part(path, names):
        raise InputError(f"{path} is {part} of a model", ONE_FILE)
    if kind == "mimi":
        raise InputError(f"{path} is a Mimi codec, not a language model", "give it as --mimi, and the model as --model")
    if kind == "lora":
        raise InputError(
            f"{path} holds LoRA adapters, not a language model", "give it as --lora, and the model as --model"
        )
    if kind != "lm":
        raise InputError(f"{path} is not a Moshi language model: it has no tensor out_norm.weight.")


def check_mimi(path: Path, names: Collection[str]) -> None:
    """Raise InputError for a codec of another library, or for a part of one, by its tensors' names.

    The extension could only say that tensors are missing. It checks everything else itself.
    """
    kind = kind_of(names)
    if kind == "Transformers' mimi":
        raise InputError(
            f"{path} has the Transformers library's names of tensors", f"give Kyutai's own file, such as {_MIMI}"
        )
    if kind == "Transformers' lm":
        raise InputError(
            f"{path} is a language model with the Transformers library's names of tensors, not a codec",
            f"give Kyutai's own file of a codec as --mimi, such as {_MIMI}",
        )
    if part := _part(path, names):
        what = "a codec" if kind == "mimi" else "a model"
        raise InputError(f"{path} is {part} of {what}", "give a codec that is in one file")
