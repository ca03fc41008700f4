"""How much memory loading and converting take beyond what they must hold, measured in processes of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from safetensors.numpy import save_file

from msh_mlx.model.engines import has_gpu
from msh_mlx.system import memory
from msh_mlx.weights.safetensors import TensorInfo, TensorWriter

LAYERS, DEPFORMER_LAYERS, SLICES = 14, 4, 4
CONFIG = {
    "dim": 512, "num_layers": LAYERS, "num_heads": 8, "n_q": 8, "dep_q": SLICES, "card": 64, "text_card": 1000, "context": 64,
    "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1], "depformer_dim": 256, "depformer_num_layers": DEPFORMER_LAYERS,
    "depformer_num_heads": 4, "depformer_dim_feedforward": 1056,
}  # fmt: skip
MEASURE = """
import json, resource, sys
import msh_native  # else it counts as memory of loading, which imports it
import numpy as np
from pathlib import Path
from msh_mlx.model.engines import prepare
from msh_mlx.weights.convert import convert
from msh_mlx.weights.load import load_lm

what, engine, path, config, extra = sys.argv[1:]

def high_water():
    # Linux's ru_maxrss may be that of the process before it ran this program.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

figures = {}
if engine == "mlx":  # what MLX and its threads take once is nobody's copy of the weights
    import mlx.core as mx

    prepare(engine)
    mx.eval(mx.quantize(mx.ones((64, 64), mx.bfloat16)), mx.ones((64, 64)) @ mx.ones((64, 64)))
before = high_water()
if what == "load":
    lm = load_lm(path, config, engine=engine, lora=extra or None)
    figures["held"] = lm.weights_bytes
else:
    convert(path, extra, bits=4, group_size=32, config=config)
if engine == "mlx":
    figures |= {"active": mx.get_active_memory(), "peak": mx.get_peak_memory()}
print(json.dumps({**figures, "rss": high_water() - before}))
"""


def write_model(path, config):
    """Write a model of random bfloat16 weights in PyTorch's layout, one after the other; return the largest one's bytes."""
    c, dim, small = config, config["dim"], config["depformer_dim"]
    hidden, small_hidden = 11 * dim // 4, 2 * c["depformer_dim_feedforward"] // 3
    shapes = {"text_emb.weight": (c["text_card"] + 1, dim), "text_linear.weight": (c["text_card"], dim)}
    shapes |= {f"emb.{k}.weight": (c["card"] + 1, dim) for k in range(c["n_q"])}
    shapes["out_norm.alpha"] = (1, 1, dim)
    for i in range(c["num_layers"]):
        layer = f"transformer.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.in_proj_weight": (3 * dim, dim),
            f"{layer}.self_attn.out_proj.weight": (dim, dim),
        }
        shapes |= {
            f"{layer}.gating.linear_in.weight": (2 * hidden, dim),
            f"{layer}.gating.linear_out.weight": (dim, hidden),
        }
        shapes |= {f"{layer}.norm{n}.alpha": (1, 1, dim) for n in (1, 2)}
    q = c["dep_q"]
    shapes["depformer_text_emb.weight"] = (c["text_card"] + 1, small)
    shapes |= {f"depformer_emb.{k}.weight": (c["card"] + 1, small) for k in range(q - 1)}
    shapes |= {f"depformer_in.{k}.weight": (small, dim) for k in range(q)}
    shapes |= {f"linears.{k}.weight": (c["card"], small) for k in range(q)}
    for i in range(c["depformer_num_layers"]):
        layer = f"depformer.layers.{i}"
        shapes[f"{layer}.self_attn.in_proj_weight"] = (q * 3 * small, small)
        shapes[f"{layer}.self_attn.out_proj.weight"] = (q * small, small)
        for k in range(q):
            shapes[f"{layer}.gating.{k}.linear_in.weight"] = (2 * small_hidden, small)
            shapes[f"{layer}.gating.{k}.linear_out.weight"] = (small, small_hidden)
        shapes |= {f"{layer}.norm{n}.alpha": (1, 1, small) for n in (1, 2)}
    tensors = {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}
    rng = np.random.default_rng(3)
    with path.open("wb") as file:
        writer = TensorWriter(file, tensors)
        for name, info in tensors.items():
            bits = rng.integers(0x3C00, 0x3D80, info.shape, np.uint16)  # from 0.008 to 0.06
            writer.write(name, bits | rng.integers(0, 2, info.shape, np.uint16) << 15)
    return max(info.nbytes for info in tensors.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of 110 MB, in bfloat16 in PyTorch's layout and with 4 bits in MLX's, its configuration, and adapters for it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_model(folder / "bf16.safetensors", CONFIG)
    adapters, rng = {}, np.random.default_rng(4)
    for i in range(LAYERS):
        adapters[f"transformer.layers.{i}.gating.linear_in.lora_A.weight"] = rng.standard_normal((8, 512), np.float32)
        adapters[f"transformer.layers.{i}.gating.linear_in.lora_B.weight"] = rng.standard_normal((2816, 8), np.float32)
    save_file(adapters, folder / "lora.safetensors")
    measured("convert", "none", folder / "bf16.safetensors", folder / "config.json", folder / "q4.safetensors")
    yield folder
    for path in folder.glob("*.safetensors"):
        path.unlink()


def measured(what, engine, path, config, extra=""):
    command = [sys.executable, "-c", MEASURE, what, engine, str(path), str(config), str(extra)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    figures = json.loads(done.stdout)
    print(what, engine, path.name, figures)
    return figures


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "q4"])
def test_loading_never_holds_two_copies(kind, lora, models, engine):
    adapters = models / "lora.safetensors" if lora else ""
    found = measured("load", engine, models / f"{kind}.safetensors", models / "config.json", adapters)
    if engine == "mlx":
        assert found["active"] == pytest.approx(found["held"], rel=0.02)
        assert found["peak"] <= 1.15 * found["held"]
    if engine == "native" or not has_gpu():  # else what is held may be elsewhere
        # The few rows that are merged at a time, and what the allocator keeps of them: the same for a model of any size.
        merging = 16 << 20 if lora else 0
        # What the system adds by large pages is up to a tenth here; a second copy would double it.
        assert found["rss"] <= 1.25 * found["held"] + merging
        assert found["rss"] > 0.8 * found["held"]


def test_converting_takes_less_than_the_largest_tensor(tmp_path):
    """Of a file of two large tensors and some small ones, never more than some rows are in memory."""
    config = {**CONFIG, "num_layers": 1, "depformer_num_layers": 1, "text_card": 100_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "large.safetensors"
    largest = write_model(path, config)
    try:
        assert largest > 100e6
        found = measured("convert", "none", path, tmp_path / "config.json", tmp_path / "out.safetensors")
        assert found["rss"] < 0.75 * largest
    finally:
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()


def test_the_limits_follow_the_memory(monkeypatch):
    mx = pytest.importorskip("mlx.core")
    gigabyte = 1 << 30
    assert [memory.cache_limit(n * gigabyte) >> 20 for n in (1, 8, 16, 192)] == [64, 256, 512, 512]
    assert memory.machine_memory() > gigabyte / 2
    limits = {}
    monkeypatch.setattr(mx, "set_cache_limit", lambda n: limits.update(cache=n))
    monkeypatch.setattr(mx, "set_wired_limit", lambda n: limits.update(wired=n))
    info = {"memory_size": 8 * gigabyte, "max_recommended_working_set_size": 5 * gigabyte}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    memory.set_limits()
    assert limits == {"cache": 256 << 20, "wired": 5 * gigabyte}
    limits.clear()
    info.clear()
    memory.set_limits()
    assert limits == {"cache": memory.cache_limit(memory.machine_memory())}
