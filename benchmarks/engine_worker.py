"""One model in a process of its own, for engine.py. It takes commands as lines of JSON, and answers each with a line.

What a kind needs is imported when it is made, so that the interpreter of any environment runs it.
"""

import json
from pathlib import Path
from time import perf_counter

import numpy as np
from serving import peak_memory, serve

LLAMA = {"dim": 4096, "layers": 32, "heads": 32, "hidden": 11008, "vocabulary": 32000}


class Native:
    """The native engine, with random weights that it makes in memory."""

    def __init__(self, config, bits, group, dtype):
        import msh_native

        self._native = msh_native
        self._config = json.loads(config)
        self._lm = msh_native.Lm.random(config, bits, group, 7, dtype)
        self._engine = self._rows = self._random = None

    def bandwidth(self, threads, seconds=0.5):
        return self._native.read_bandwidth(threads, 1 << 29, seconds)

    def begin(self, threads, activations, rows=1, kv="float16", held=0):
        """Make conversations that hold some positions."""
        self._engine = self._lm.engine(rows, activations=activations, threads=threads)
        self._random = np.random.default_rng(1)
        self._rows = [self._lm.conversation(kv=kv, seed=i) for i in range(rows)]
        for row in self._rows:
            if held >= self._config["context"]:
                row.fill_window()
            elif held:
                self._engine.read(row, np.concatenate([self._column() for _ in range(held)]))
        kept = sum(row.nbytes() for row in self._rows)
        return {"weights": self._lm.step_bytes, "kept": kept, "held": self._lm.held_bytes}

    def _column(self):
        cards = [self._config["text_card"], *[self._config["card"]] * self._config["n_q"]]
        return self._random.integers(0, cards)[None].astype(np.int32)

    def steps(self, count):
        """Run steps. Return the seconds of each."""
        seconds = []
        for _ in range(count):
            tokens = np.concatenate([self._column() for _ in self._rows])
            begin = perf_counter()
            self._engine.speak(self._rows, self._engine.hear(self._rows, tokens))
            seconds.append(perf_counter() - begin)
        return seconds

    def memory(self):
        return peak_memory()


class Mlx:
    """The MLX engine, with a model in a file."""

    def __init__(self, weights, config):
        from msh_mlx import LmGen, load_lm

        lm = load_lm(weights, config, engine="mlx")
        self._gen, self._user, self._card = LmGen(lm, seed=1), lm.config.user_q, lm.config.card
        self._gen.warm_up()

    def steps(self, count):
        """Run steps. Return the seconds of each."""
        random, seconds = np.random.default_rng(1), []
        for _ in range(count):
            codes = random.integers(0, self._card, self._user)
            begin = perf_counter()
            self._gen.step(codes)
            seconds.append(perf_counter() - begin)
        return seconds


class Llama:
    """llama.cpp, with a Llama of the published size and random weights, which it writes if the file is not there."""

    def __init__(self, path, kind):
        if not Path(path).exists():
            self._write(Path(path), kind, **LLAMA)
        self._path, self._llm = path, None
        self._bytes = self._read_bytes(kind, **LLAMA)

    @staticmethod
    def _block(kind):
        """Return the bytes of a block of 32 weights."""
        return {"Q4_0": 18, "Q8_0": 34}[kind]

    def _read_bytes(self, kind, dim, layers, hidden, vocabulary, **_):
        weights = layers * (4 * dim * dim + 3 * dim * hidden) + dim * vocabulary
        return weights // 32 * self._block(kind)

    def _write(self, path, kind, dim, layers, heads, hidden, vocabulary):
        import gguf

        part = path.with_suffix(".part")
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_context_length(512)
        writer.add_embedding_length(dim)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(hidden)
        writer.add_head_count(heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(dim // heads)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"<{i}>" for i in range(vocabulary)])
        writer.add_token_scores([0.0] * vocabulary)
        writer.add_token_types([1] * vocabulary)
        random = np.random.default_rng(7)
        number = gguf.GGMLQuantizationType[kind]

        def matrix(name, rows, columns):
            blocks = random.integers(0, 256, (rows, columns // 32, self._block(kind)), np.uint8)
            # The scale comes first, in float16.
            blocks[..., :2] = np.frombuffer(
                np.float16(1 / (8 if kind == "Q4_0" else 100) / columns**0.5).tobytes(), np.uint8
            )
            writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=number)

        def vector(name):
            writer.add_tensor(name, np.ones(dim, np.float32))

        matrix("token_embd.weight", vocabulary, dim)
        for i in range(layers):
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                matrix(f"blk.{i}.{name}.weight", dim, dim)
            matrix(f"blk.{i}.ffn_gate.weight", hidden, dim)
            matrix(f"blk.{i}.ffn_up.weight", hidden, dim)
            matrix(f"blk.{i}.ffn_down.weight", dim, hidden)
            vector(f"blk.{i}.attn_norm.weight")
            vector(f"blk.{i}.ffn_norm.weight")
        vector("output_norm.weight")
        matrix("output.weight", vocabulary, dim)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.rename(path)

    def begin(self, threads):
        from llama_cpp import Llama

        self._llm = None  # before the next takes memory
        self._llm = Llama(self._path, n_threads=threads, n_threads_batch=threads, n_ctx=512, verbose=False)
        return {"weights": self._bytes, "kept": 0}

    def steps(self, count):
        """Run steps of one token. Return the seconds of each."""
        seconds = []
        if self._llm.n_tokens + count > 256:
            self._llm.reset()
        for i in range(count):
            begin = perf_counter()
            self._llm.eval([i + 3])
            seconds.append(perf_counter() - begin)
        return seconds


def make(kind, *arguments):
    return {"native": Native, "mlx": Mlx, "llama": Llama}[kind](*map(number, arguments))


def number(text):
    return int(text) if text.isdecimal() else text


if __name__ == "__main__":
    serve(make)
