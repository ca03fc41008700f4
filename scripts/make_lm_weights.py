#!/usr/bin/env python3
"""Write a language model with seeded random weights of a published size, packed as MLX packs them, and its configuration.

It replaces the published checkpoint where only its size counts: memory, time to load, time of a step. What it says is noise.

usage: make_lm_weights.py OUT.safetensors [--size 7b|1b] [--bits 4|8] [--seed 7]
OUT.json, the configuration, is written beside it.
"""

from __future__ import annotations

import json
import math
import sys

import numpy as np

from msh_mlx.bench import SIZES
from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.model.parameters import CONDITIONS, Parameter, parameters
from msh_mlx.system.newfile import NewFile, check_outputs
from msh_mlx.system.places import user_path
from msh_mlx.weights.beside import config_beside
from msh_mlx.weights.safetensors import TensorInfo, TensorWriter, as_bfloat16

_CHUNK = 1 << 24  # numbers that are made at a time


def described(one: Parameter, bits: int, group: int) -> dict[str, TensorInfo]:
    """Return the tensors of a parameter in the file."""
    packs = one.kind != "other" and not one.name.startswith(CONDITIONS) and one.shape[1] % group == 0
    if not packs:
        return {one.name: TensorInfo("BF16", one.shape)}
    rows, columns = one.shape
    numbers = TensorInfo("BF16", (rows, columns // group))
    words = TensorInfo("U32", (rows, columns * bits // 32))
    return {one.name: words, f"{one.module}.scales": numbers, f"{one.module}.biases": numbers}


def main() -> int:
    """Run the script and return its exit code."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT", help="write the weights to this file (.safetensors)")
    parser.add_argument("--size", choices=tuple(SIZES), default="7b", help="the published size (default: %(default)s)")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="bits a weight (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=7, help="seed of the weights (default: %(default)s)")
    args = parser.parse_args()
    out = user_path(args.out)
    check_outputs([out, config_beside(out)], [])
    config, bits, group = SIZES[args.size], args.bits, 32 if args.bits == 4 else 64
    random = np.random.default_rng(args.seed)
    wanted = parameters(config)
    tensors = {name: info for one in wanted for name, info in described(one, bits, group).items()}
    columns = {one.name: one.shape[-1] for one in wanted}
    with NewFile(out) as new, NewFile(config_beside(out)) as beside:
        beside.file.write(json.dumps(config.to_dict(), indent=1).encode() + b"\n")
        writer = TensorWriter(new.file, tensors)
        for name, info in tensors.items():
            module, _, part = name.rpartition(".")
            # Evenly distributed numbers of so many bits, with the variance 1 / columns.
            scale = (columns[f"{module}.weight"] * ((1 << bits) ** 2 - 1) / 12) ** -0.5
            rows = max(1, _CHUNK // math.prod(info.shape[1:]))
            for row in range(0, info.shape[0], rows):
                shape = (min(rows, info.shape[0] - row), *info.shape[1:])
                if info.dtype == "U32":
                    array = random.integers(0, 1 << 32, shape, np.uint32)
                elif part in ("scales", "biases"):
                    value = scale if part == "scales" else -scale * ((1 << bits) - 1) / 2
                    array = as_bfloat16(np.full(shape, value, np.float32))
                elif len(shape) == 1:
                    array = as_bfloat16(np.ones(shape, np.float32))
                else:
                    array = as_bfloat16(random.standard_normal(shape, np.float32) * shape[-1] ** -0.5)
                writer.write(name, array, row)
        new.commit()
        beside.commit()
    return 0


if __name__ == "__main__":
    sys.exit(guard(lambda _: main()))
