"""Models for tests, on each engine."""

from pathlib import Path

import pytest
from paths import DEMO
from safetensors.numpy import save_file
from slow_lm import random_weights

from msh_mlx import LmConfig, Sampler, Speaker, load_lm, read_speaker
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.shared_speaker import Voices
from msh_mlx.library.files import find_demo


class _Mlx:
    """The module `mlx.core`. A test that takes something of it is skipped where it is not."""

    def __getattr__(self, name):
        return getattr(pytest.importorskip("mlx.core"), name)


mx = _Mlx()


def load_exact(path, config, engine, **options):
    """Load a model that computes in float32, and keeps keys and values in it unless a conversation says otherwise."""
    return load_lm(path, config, "float32", engine=engine, **options)


def seeded(folder: Path, config, engine, seed=7):
    """A model of seeded random weights, read from a file, and the weights, by PyTorch's names."""
    values = config.to_dict() if isinstance(config, LmConfig) else config
    feedforward = values["depformer_dim_feedforward"] or 4 * values["depformer_dim"]
    weights = random_weights({**values, "depformer_dim_feedforward": feedforward}, seed)
    save_file(weights, folder / "lm.safetensors")
    return load_exact(folder / "lm.safetensors", config, engine), weights


def demo_voices(engine="auto"):
    """The demo text-to-speech model with its voices, calm and brisk. It speaks greedily."""
    parts = load_parts(find_demo("speech"), engine=engine)
    files = {name: DEMO / "tts" / "voices" / f"{name}.d161752e@1.safetensors" for name in ("brisk", "calm")}
    greedy = {"text_sampler": Sampler(0), "audio_sampler": Sampler(0)}
    made = {
        name: Speaker(parts.lm, parts.mimi, parts.tokenizer, voices=[read_speaker(file)], **greedy)
        for name, file in files.items()
    }
    return Voices(made, "calm")


def on_mlx(path, config=None, dtype="float32", **options):
    """MLX's module of a model. Where MLX is not, the test is skipped."""
    pytest.importorskip("mlx.core")
    return load_lm(path, config, dtype, engine="mlx", **options).module


def weights_on_mlx(path, config=None, dtype="float32", **options):
    """All weights of a model as MLX's engine holds them, and those of its conditions, by their names."""
    pytest.importorskip("mlx.core")
    lm = load_lm(path, config, dtype, engine="mlx", **options)
    conditions = {f"condition_provider.{name}": mx.array(array) for name, array in lm.conditions._weights.items()}
    return dict(lm.module.named_parameters()) | conditions
