"""The names and shapes of parameters, against those of MLX's model."""

import dataclasses

import pytest
import shapes
from paths import DEMO, GOLDEN

from msh_mlx import LmConfig
from msh_mlx.model.parameters import CONDITIONS, parameters
from msh_mlx.weights.checkpoint import open_checkpoint

SHAPES = {name: config for name, config in vars(shapes).items() if isinstance(config, LmConfig)}
FILES = sorted([*GOLDEN.glob("*/lm*.safetensors"), *DEMO.rglob("model*.safetensors")])


def on_mlx(config, *widths):
    """What MLX's model says: the shapes of its parameters, and which of them can be packed."""
    pytest.importorskip("mlx.core")
    from msh_mlx.model.mlx.lm import Lm

    lm = Lm(config, *widths)
    packs = {f"{name}.weight" for name, module in lm.named_modules() if hasattr(module, "to_quantized")}
    return {name: array.shape for name, array in lm.named_parameters()}, packs


def without_conditions(listed):
    return [one for one in listed if not one.name.startswith(CONDITIONS)]


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_of_published_models(name):
    listed = without_conditions(parameters(SHAPES[name]))
    wanted, packs = on_mlx(SHAPES[name])
    assert {one.name: one.shape for one in listed} == wanted
    assert len(listed) == len(wanted)
    # Some tables have modules of their own in MLX, which pack themselves.
    assert packs <= {one.name for one in listed if one.kind != "other"}
    assert {one.name for one in listed if one.kind == "other"} == {n for n, shape in wanted.items() if len(shape) != 2}


def test_published_models_are_there():
    assert len(SHAPES) >= 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name.removesuffix('.safetensors')}")
def test_parameters_of_files(path):
    """Those that the file holds, unpacked, with the widths of its own feed-forwards; conditions included."""
    checkpoint = open_checkpoint(path, path.with_name("config.json"))
    widths = [
        checkpoint.shapes.get(f"{layer}.gating.linear_out", (0, None))[1]
        for layer in ("transformer.layers.0", "depformer.slices.0.transformer.layers.0")
    ]
    listed = parameters(checkpoint.config, *widths)
    assert {one.name.removesuffix(".weight"): one.shape for one in listed} == checkpoint.shapes
    assert {one.module for one in listed if one.kind == "linear"} == checkpoint.linear
    assert {one.name: one.shape for one in without_conditions(listed)} == on_mlx(checkpoint.config, *widths)[0]
    conditions = {one.name for one in listed if one.name.startswith(CONDITIONS)}
    held = {f"{CONDITIONS}{name}" for name in checkpoint.conditions()._weights}
    assert conditions == held


def test_a_wider_feed_forward_is_all_that_changes():
    config = shapes.HIBIKI_2B
    usual, wide = ({one.name: one.shape for one in parameters(config, *widths)} for widths in ((), (100, 200)))
    changed = {name for name, shape in wide.items() if usual[name] != shape}
    assert usual.keys() == wide.keys()
    assert changed == {name for name in usual if ".gating." in name}
    assert dataclasses.replace(config, hidden_scale=100 * 3 / 2 / config.dim).hidden == 100
