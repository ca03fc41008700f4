"""Files that are something else than the option wants them for: each gets a sentence of its own, whichever option it is."""

import json
import shutil

import numpy as np
import pytest
from paths import DEMO, GOLDEN
from safetensors.numpy import load_file, save_file

from msh_mlx import InputError, load_lm, load_mimi
from msh_mlx.weights.checkpoint import describe
from msh_mlx.weights.safetensors import read_header

MIMI = "hf:kyutai/moshiko-mlx-q4/tokenizer-e351c8d8-checkpoint125.safetensors"
TRANSFORMERS_MIMI = [
    "encoder.layers.0.conv.weight",
    "decoder.layers.3.block.1.conv.weight",
    "encoder_transformer.layers.0.self_attn.q_proj.weight",
    "quantizer.acoustic_residual_vector_quantizer.layers.0.codebook.embed_sum",
]
TRANSFORMERS_LM = ["decoder.model.layers.0.self_attn.q_proj.linear.weight", "depth_decoder.layers.0.x"]


def file_of(path, *names):
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, path)
    return path


def refused(load, path, *config):
    with pytest.raises(InputError) as error:
        load(path, *config)
    return str(error.value).removeprefix(f"{path} ")


def as_model(path):
    return refused(load_lm, path, DEMO / "config.json")


def as_codec(path):
    return refused(load_mimi, path)


@pytest.mark.parametrize("name", TRANSFORMERS_MIMI)
def test_a_codec_with_the_names_of_another_library(name, tmp_path):
    path = file_of(tmp_path / "mimi.safetensors", name)
    assert as_codec(path) == f"has the Transformers library's names of tensors; give Kyutai's own file, such as {MIMI}."
    # Not "give it as --mimi", which would not work.
    assert as_model(path) == (
        "is a Mimi codec with the Transformers library's names of tensors, not a language model; give Kyutai's own file of "
        f"it as --mimi, such as {MIMI}, and the model as --model."
    )
    assert describe(read_header(path)) == "a Mimi codec with the Transformers library's names"


@pytest.mark.parametrize("name", TRANSFORMERS_LM)
def test_a_model_with_the_names_of_another_library_as_the_codec(name, tmp_path):
    assert as_codec(file_of(tmp_path / "model-00001-of-00003.safetensors", name)) == (
        "is a language model with the Transformers library's names of tensors, not a codec; give Kyutai's own file of a "
        f"codec as --mimi, such as {MIMI}."
    )


def test_an_index_of_parts_as_the_codec(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(
        json.dumps({"weight_map": {"encoder.model.0.conv.conv.weight": "model-00001-of-00002.safetensors"}})
    )
    assert as_codec(path) == (
        "is an index of a model that is in several files (model-00001-of-00002.safetensors); give a model that is in one "
        "file."
    )


def test_a_part_as_the_codec(tmp_path):
    path = file_of(tmp_path / "mimi-00001-of-00002.safetensors", "encoder.model.0.conv.conv.weight")
    assert as_codec(path) == "is part 1 of 2 of a codec; give a codec that is in one file."
    path = file_of(tmp_path / "model-00002-of-00003.safetensors", "transformer.layers.7.norm1.alpha")
    assert as_codec(path) == "is part 2 of 3 of a model; give a codec that is in one file."


def test_a_name_proves_nothing(tmp_path):
    whole = shutil.copy(DEMO / "mimi.safetensors", tmp_path / "mimi-00001-of-00002.safetensors")
    assert load_mimi(whole).num_codebooks == 8
    assert as_model(whole).startswith("is a Mimi codec, not a language model; give it as --mimi")
    model = tmp_path / "model-00001-of-00002.safetensors"
    save_file(load_file(GOLDEN / "lm-small" / "lm_mlx_f32.safetensors"), model)
    assert "it is a Moshi language model, give it as --model" in as_codec(model)
