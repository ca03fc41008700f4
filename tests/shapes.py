"""The configurations of the published models of the family, as far as they are known: sizes are counted by them."""

from msh_mlx.model.config import LmConfig

_DESCRIPTION = {
    "conditioners": {
        "description": {
            "type": "lut",
            "lut": {"n_bins": 31, "dim": 16, "possible_values": ["very_bad", "bad", "neutral", "good", "very_good"]},
        }
    },
    "fuser": {"sum": ["description"]},
    "model_type": "hibiki",
}
_WITH_USER_OF = {8: [0] + ([0] + 7 * [2]) * 2, 16: [0] + ([0] + 15 * [2]) * 2}

MOSHI = LmConfig()
PERSONAPLEX = LmConfig.from_dict({"dep_q": 16, "model_type": "personaplex"})
HIBIKI_1B = LmConfig.from_dict(
    {
        **_DESCRIPTION,
        "dim": 2048,
        "num_layers": 16,
        "num_heads": 16,
        "context": 500,
        "max_period": 100000,
        "text_card": 48000,
        "delays": _WITH_USER_OF[8],
    }
)
HIBIKI_2B = LmConfig.from_dict(
    {
        **_DESCRIPTION,
        "dim": 2560,
        "num_layers": 24,
        "num_heads": 20,
        "context": 1500,
        "max_period": 100000,
        "text_card": 48000,
        "n_q": 32,
        "dep_q": 16,
        "delays": _WITH_USER_OF[16],
        "depformer_num_layers": 4,
        "depformer_dim_feedforward": 3072,
        "depformer_low_rank_embeddings": 128,
        "depformer_weights_per_step_schedule": [*range(8), *8 * [8]],
    }
)
HIBIKI_ZERO = LmConfig.from_dict(
    {
        "dim": 2048,
        "num_layers": 28,
        "num_heads": 16,
        "context": 3000,
        "max_period": 20000,
        "text_card": 48000,
        "n_q": 32,
        "dep_q": 16,
        "delays": _WITH_USER_OF[16],
        "hidden_scale": 6,
        "kv_repeat": 2,
        "depformer_kv_repeat": 1,
        "positional_embedding": "rope_concat",
        "depformer_norm": "layer_norm",
        "depformer_dim_feedforward": None,
        "depformer_weights_per_step_schedule": [*range(8), *8 * [8]],
    }
)
_STT = {"n_q": 32, "dep_q": 0, "delays": 33 * [0], "max_period": 100000, "dim": 2048}
STT_1B = LmConfig.from_dict({**_STT, "num_layers": 16, "num_heads": 16, "context": 750, "text_card": 8000})
STT_1B_HEADS = LmConfig.from_dict(
    {
        **_STT,
        "num_layers": 16,
        "num_heads": 16,
        "context": 750,
        "text_card": 8000,
        "extra_heads_num_heads": 4,
        "extra_heads_dim": 6,
    }
)
STT_26B = LmConfig.from_dict({**_STT, "num_layers": 48, "num_heads": 32, "context": 375, "text_card": 4000})
TTS_16B = LmConfig.from_dict(
    {
        "dim": 2048,
        "num_layers": 16,
        "num_heads": 16,
        "context": 500,
        "text_card": 8000,
        "n_q": 32,
        "dep_q": 32,
        "delays": [0, 0, *31 * [2]],
        "model_type": "tts",
        "depformer_num_layers": 4,
        "depformer_dim_feedforward": 3072,
        "depformer_low_rank_embeddings": 128,
        "depformer_weights_per_step_schedule": [*range(8), *8 * [8], *8 * [9], *8 * [10]],
        "demux_second_stream": True,
        "cross_attention": True,
        "conditioners": {
            "speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}},
            "cfg": {
                "type": "lut",
                "lut": {"n_bins": 7, "dim": 16, "possible_values": [str(c / 2) for c in range(2, 9)]},
            },
            "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 2048, "possible_values": ["ok"]}},
        },
        "fuser": {"sum": ["control", "cfg"], "cross": ["speaker_wavs"], "cross_attention_pos_emb": True},
    }
)
