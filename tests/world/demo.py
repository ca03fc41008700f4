"""Write the demo model for moshi's own programs: PyTorch's names, float32, and the configurations that they need."""

import json
import re
from pathlib import Path

import mlx.core as mx

from msh_mlx.library.files import demo_folder

# Names in the MLX layout, and their names in PyTorch's.
_NAMES = [
    (r"audio_embs\.(\d+)\.weight", r"emb.\1.weight"),
    (r"out_norm\.weight", "out_norm.alpha"),
    (r"(transformer\.layers\.\d+\.self_attn\.(?:in|out)_proj)\.weight", r"\1s.0.weight"),
    (r"(transformer\.layers\.\d+\.norm\d)\.weight", r"\1.alpha"),
    (r"depformer\.slices\.(\d+)\.linear_in\.weight", r"depformer_in.\1.weight"),
    (r"depformer\.slices\.(\d+)\.linear_out\.weight", r"linears.\1.weight"),
    (r"depformer\.slices\.0\.emb\.weight", "depformer_text_emb.weight"),
    (
        r"depformer\.slices\.(\d+)\.transformer\.(layers\.\d+)\.gating\.(\w+)\.weight",
        r"depformer.\2.gating.\1.\3.weight",
    ),
    (
        r"depformer\.slices\.(\d+)\.transformer\.(layers\.\d+\.self_attn)\.(\w+)\.weight",
        r"depformer.\2.\3s.\1.weight",
    ),
    (r"depformer\.slices\.\d+\.transformer\.(layers\.\d+\.norm\d)\.weight", r"depformer.\1.alpha"),
]
_EMBEDDING = re.compile(r"depformer\.slices\.(\d+)\.emb\.weight")
# Where the demo codec differs from the published one.
_MIMI = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": 128, "causal": True, "n_filters": 16, "n_residual_layers": 1, "activation": "ELU",
        "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0, "kernel_size": 7, "residual_kernel_size": 3,
        "last_kernel_size": 3, "norm": "none", "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {"dimension": 64, "n_q": 8, "bins": 256, "input_dimension": 128, "output_dimension": 128},
    "transformer": {
        "d_model": 128, "num_heads": 4, "num_layers": 2, "causal": True, "layer_scale": 0.01, "context": 24,
        "conv_layout": True, "max_period": 10000, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope",
        "dim_feedforward": 512, "input_dimension": 128, "output_dimensions": [128],
    },
}  # fmt: skip


def pytorch_name(name: str) -> str:
    """Return PyTorch's name of the tensor `name` of the MLX layout."""
    for pattern, new in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(new)
    if match := _EMBEDDING.fullmatch(name):
        return f"depformer_emb.{int(match[1]) - 1}.weight"
    return name


def write(folder: Path) -> None:
    """Write the model and its configurations into `folder`. They make it choose greedily."""
    demo = demo_folder()
    stored = mx.load(str(demo / "model.q8.safetensors"))
    assert isinstance(stored, dict)
    weights = {}
    for name, tensor in stored.items():
        if name.endswith((".scales", ".biases")):
            continue
        module = name.removesuffix(".weight")
        if f"{module}.scales" in stored:
            scales, biases = (stored[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            tensor = mx.dequantize(tensor, scales, biases, group_size=64, bits=8)
        new = pytorch_name(name)
        weights[new] = tensor.astype(mx.float32).reshape((1, 1, -1) if new.endswith(".alpha") else tensor.shape)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "mimi.json").write_text(json.dumps(_MIMI))
    files = {
        "moshi_name": folder / "model.safetensors",
        "mimi_name": demo / "mimi.safetensors",
        "mimi_config_name": folder / "mimi.json",
        "tokenizer_name": demo / "tokenizer.model",
    }
    config = json.loads((demo / "config.json").read_text())
    config |= {key: f"file://{path}" for key, path in files.items()} | {"lm_gen_config": {"use_sampling": False}}
    (folder / "config.json").write_text(json.dumps(config))
