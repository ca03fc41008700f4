"""Write the model of small_llama.py for llama.cpp, with a tokenizer of pieces: small_gguf.py FILE."""

import sys

import gguf
import numpy as np

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPECIAL = ["<unk>", "<s>", "</s>"]
TYPES = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]

whole = [f"\u2581{word}" for word in WORDS]
# Pieces are merged from their beginnings, so each of those is a token, too; the longer one goes first.
begun = sorted({piece[:end] for piece in whole for end in range(1, len(piece))} | set("".join(whole)))
raw = [f"<0x{byte:02X}>" for byte in range(256)]
tokens = [*SPECIAL, *raw, *begun, *whole]
scores = [0.0] * (len(SPECIAL) + len(raw)) + [float(len(piece)) for piece in [*begun, *whole]]
types = [*TYPES, *[gguf.TokenType.BYTE] * len(raw), *[gguf.TokenType.NORMAL] * len(begun + whole)]

count, heads = len(tokens), 2
dim = 32 * -(-count // 32)
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(512)
writer.add_embedding_length(dim)
writer.add_block_count(1)
writer.add_feed_forward_length(64)
writer.add_head_count(heads)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(dim // heads)
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores(scores)
writer.add_token_types([int(kind) for kind in types])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
# No space at the end: the last token is to be a word.
writer.add_chat_template("{% for message in messages %}{{ ' ' if not loop.first }}{{ message['content'] }}{% endfor %}")

end = tokens.index("</s>")
head = np.zeros((count, dim), np.float32)
for piece, after in zip(whole, [*whole[1:], None], strict=True):
    head[end if after is None else tokens.index(after), tokens.index(piece)] = 1
embedding = np.eye(count, dim, dtype=np.float32)
nothing = np.zeros((dim, dim), np.float32)
tensors = {
    "token_embd.weight": embedding,
    "output.weight": head,
    "output_norm.weight": np.ones(dim, np.float32),
    "blk.0.attn_norm.weight": np.ones(dim, np.float32),
    "blk.0.ffn_norm.weight": np.ones(dim, np.float32),
    "blk.0.attn_q.weight": nothing,
    "blk.0.attn_k.weight": nothing,
    "blk.0.attn_v.weight": nothing,
    "blk.0.attn_output.weight": nothing,
    "blk.0.ffn_gate.weight": np.zeros((64, dim), np.float32),
    "blk.0.ffn_up.weight": np.zeros((64, dim), np.float32),
    "blk.0.ffn_down.weight": np.zeros((dim, 64), np.float32),
}
for name, tensor in tensors.items():
    writer.add_tensor(name, tensor)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
