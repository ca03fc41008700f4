"""Writes safetensors files of any type. The library's numpy part knows no bfloat16."""

import json

import numpy as np

from msh_mlx.weights.safetensors import as_bfloat16, as_float32


def save_as(path, arrays, dtype, metadata=None):
    """Write arrays in "float32", "float16" or "bfloat16". Return the numbers that the file holds then, in float32."""
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    header, parts, end = {"__metadata__": metadata} if metadata else {}, [], 0
    held = {}
    for name, array in arrays.items():
        part = as_bfloat16(array.astype(np.float32)) if dtype == "bfloat16" else array.astype(dtype)
        held[name] = as_float32(part)
        header[name] = {"dtype": kind, "shape": list(part.shape), "data_offsets": [end, end + part.nbytes]}
        parts.append(part.tobytes())
        end += part.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(parts))
    return held
