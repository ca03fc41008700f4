"""Write a language model that counts from the last digit it was told up to nine, for mlx_lm.server: small_llama.py FOLDER.

It is a Llama of two layers that add nothing. So the last token alone decides which one comes next.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
special = ["<unk>", "</s>", ".", ",", "?", "!"]
vocabulary = [*special, *WORDS]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
fast.save_pretrained(folder)
(folder / "config.json").write_text(json.dumps(CONFIG))
weights = {name: mx.zeros_like(value) for name, value in tree_flatten(Model(ModelArgs.from_dict(CONFIG)).parameters())}
weights |= {name: mx.ones_like(value) for name, value in weights.items() if "norm" in name}
weights["model.embed_tokens.weight"] = mx.eye(16, 32)
following = dict(zip(WORDS, [*WORDS[1:], "</s>"], strict=True))
head = mx.zeros((16, 32))
for i, word in enumerate(vocabulary):
    head[vocabulary.index(following.get(word, "</s>")), i] = 1
weights["lm_head.weight"] = head
mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
