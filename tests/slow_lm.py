"""The language models of the family, slow and obvious: numpy in float64, with everything kept, and a mask for the window.

It is written from the description of the architecture, for tensors of the PyTorch layout, and compared with the real one.
"""

import numpy as np


def rms_norm(x, alpha):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8) * alpha.reshape(-1)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x, positions, max_period, concat=False):
    """`x` is [heads, steps, head_dim]; pairs (2i, 2i + 1) are rotated, with `concat` pairs (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * max_period ** (-2 * np.arange(half) / x.shape[-1])
    first, second = (slice(0, half), slice(half, None)) if concat else (slice(0, None, 2), slice(1, None, 2))
    a, b = x[..., first], x[..., second]
    out = np.empty_like(x)
    out[..., first] = a * np.cos(angle) - b * np.sin(angle)
    out[..., second] = a * np.sin(angle) + b * np.cos(angle)
    return out


def cut(rows, heads, repeat):
    """Projected `rows` [steps, width] → q, k, v, each [heads, steps, head_dim]; head h has the keys and values h // repeat."""
    dim = rows.shape[1] * repeat // (repeat + 2)
    shared = dim // repeat
    parts = rows[:, :dim], rows[:, dim : dim + shared], rows[:, dim + shared :]
    q, k, v = (part.reshape(len(rows), -1, dim // heads).transpose(1, 0, 2) for part in parts)
    return q, np.repeat(k, repeat, axis=0), np.repeat(v, repeat, axis=0)


def attention(x, w_in, w_out, heads, window, max_period, repeat=1, concat=False):
    """`x` is [steps, dim]; every step sees itself and the `window - 1` before it."""
    steps, dim = x.shape
    q, k, v = cut(x @ w_in.T, heads, repeat)
    q, k = (rotate(a, np.arange(steps), max_period, concat) for a in (q, k))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim // heads)
    age = np.arange(steps)[:, None] - np.arange(steps)[None, :]
    scores[:, (age < 0) | (age >= window)] = -np.inf
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(steps, dim) @ w_out.T


def cross_attention(x, source, w_in, w_out, heads):
    """`x` [steps, dim] sees all of `source` [T, dim]."""
    steps, dim = x.shape
    q, _, _ = cut(x @ w_in.T, heads, 1)
    _, k, v = cut(source @ w_in.T, heads, 1)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim // heads)
    return (softmax(scores) @ v).transpose(1, 0, 2).reshape(steps, dim) @ w_out.T


def gating(x, w_in, w_out):
    a, b = np.split(x @ w_in.T, 2, axis=-1)
    return (a / (1 + np.exp(-a)) * b) @ w_out.T


class SlowLm:
    """`weights` are the tensors of the PyTorch layout, `config` the contents of its `config.json`."""

    def __init__(self, weights, config):
        self.w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
        self.c = config

    # ---- what goes in ------------------------------------------------------------------------------------------------------

    def look_up(self, name, token):
        """The embedding of one token in the table `name`."""
        w, table = self.w, self.w[f"{name}.weight"]
        if token < 0:
            return 0 * self.look_up(name, 0)
        if f"{name}.out1.weight" in w:
            first, second = token % len(table), token // len(table) - 1
            x = w[f"{name}.out1.weight"] @ table[first]
            return x if second < 0 else x + w[f"{name}.out2.weight"] @ table[second]
        if f"{name}.low_rank.weight" in w:
            return w[f"{name}.low_rank.weight"] @ table[token]
        return table[token]

    def condition(self, name, value):
        """The vector of a value of a condition; None: it is not given."""
        p, entry = f"condition_provider.conditioners.{name}", self.c["conditioners"][name]["lut"]
        if value is None:
            return self.w[f"{p}.learnt_padding"].reshape(-1)
        row = self.w[f"{p}.embed.weight"][entry["possible_values"].index(value)]
        return self.w[f"{p}.output_proj.weight"] @ row

    def source(self, name, voices, slots=5):
        """What cross-attention sees of some voices, each [steps, c], in as many slots."""
        p = f"condition_provider.conditioners.{name}"
        steps, parts = len(voices[0]), []
        for i in range(slots):
            for t in range(steps):
                if i < len(voices):
                    parts.append(self.w[f"{p}.output_proj.weight"] @ voices[i][t])
                else:
                    parts.append(self.w[f"{p}.learnt_padding"].reshape(-1))
        dim, scale = self.c["dim"], self.c["fuser"]["cross_attention_pos_emb_scale"]
        for t, part in enumerate(parts):
            for i in range(dim // 2):
                angle = t / 10000 ** (i / (dim / 2 - 1))
                part = part + scale * (np.arange(dim) == i) * np.cos(angle)
                part = part + scale * (np.arange(dim) == dim // 2 + i) * np.sin(angle)
            parts[t] = part
        return np.array(parts)

    # ---- the model ---------------------------------------------------------------------------------------------------------

    def embed(self, tokens):
        """`tokens` [steps, 1 + n_q] → the inputs [steps, dim]."""
        names = ["text_emb", *(f"emb.{k}" for k in range(self.c["n_q"]))]
        return np.array(
            [sum(self.look_up(name, cell) for name, cell in zip(names, row, strict=True)) for row in tokens]
        )

    def temporal(self, tokens, added=0, source=None):
        """`tokens` [steps, 1 + n_q] → output after the norm [steps, dim] and text logits [steps, text_card_out].

        `added` [dim] comes to every input, and `source` [T, dim] is what cross-attention sees.
        """
        w, c = self.w, self.c
        x = self.embed(tokens) + added
        for i in range(c["num_layers"]):
            p = f"transformer.layers.{i}"
            x = x + attention(
                rms_norm(x, w[f"{p}.norm1.alpha"]),
                w[f"{p}.self_attn.in_proj_weight"],
                w[f"{p}.self_attn.out_proj.weight"],
                c["num_heads"],
                c["context"],
                c["max_period"],
                c.get("kv_repeat", 1),
                c.get("positional_embedding") == "rope_concat",
            )
            if source is not None:
                x = x + cross_attention(
                    layer_norm(x, w[f"{p}.norm_cross.weight"], w[f"{p}.norm_cross.bias"]),
                    source,
                    w[f"{p}.cross_attention.in_proj_weight"],
                    w[f"{p}.cross_attention.out_proj.weight"],
                    c["num_heads"],
                )
            x = x + gating(
                rms_norm(x, w[f"{p}.norm2.alpha"]),
                w[f"{p}.gating.linear_in.weight"],
                w[f"{p}.gating.linear_out.weight"],
            )
        x = rms_norm(x, w["out_norm.alpha"])
        return x, x @ w["text_linear.weight"].T

    def heads(self, h):
        """The probabilities that the extra heads give for outputs `h` [steps, dim]: [steps, heads, classes]."""
        count = self.c["extra_heads_num_heads"]
        return np.stack([softmax(h @ self.w[f"extra_heads.{i}.weight"].T) for i in range(count)], axis=1)

    def depformer(self, h, text_token, codes, count=None):
        """One step: `h` [dim], the text token, and the codes that were chosen → logits [count, card]."""
        w, c = self.w, self.c
        n = c["dep_q"] if count is None else count
        schedule = c.get("depformer_weights_per_step_schedule") or list(range(c["dep_q"]))
        previous = [self.look_up("depformer_text_emb", text_token)]
        previous += [self.look_up(f"depformer_emb.{k}", codes[k]) for k in range(n - 1)]
        x = np.stack([w[f"depformer_in.{schedule[k]}.weight"] @ h + previous[k] for k in range(n)])
        heads, repeat = c["depformer_num_heads"], c.get("depformer_kv_repeat") or c.get("kv_repeat", 1)
        slices = max(schedule) + 1
        for i in range(c["depformer_num_layers"]):
            p = f"depformer.layers.{i}"
            y = rms_norm(x, w[f"{p}.norm1.alpha"])
            w_in, w_out = (
                w[f"{p}.self_attn.{name}"].reshape(slices, -1, x.shape[1])
                for name in ("in_proj_weight", "out_proj.weight")
            )
            rows = np.stack([w_in[schedule[k]] @ y[k] for k in range(n)])
            q, keys, values = cut(rows, heads, repeat)
            out = np.zeros((n, heads, q.shape[2]))
            for k in range(n):
                for head in range(heads):
                    score = keys[head, : k + 1] @ q[head, k] / np.sqrt(q.shape[2])
                    out[k, head] = softmax(score) @ values[head, : k + 1]
            x = x + np.stack([w_out[schedule[k]] @ out[k].reshape(-1) for k in range(n)])
            y = rms_norm(x, w[f"{p}.norm2.alpha"])
            gates = [f"{p}.gating.{schedule[k]}" for k in range(n)]
            x = x + np.stack(
                [gating(y[k], w[f"{g}.linear_in.weight"], w[f"{g}.linear_out.weight"]) for k, g in enumerate(gates)]
            )
        if c.get("depformer_norm") == "layer_norm":
            norms = [f"depformer_norms.{k}" for k in range(n)]
            x = np.stack([layer_norm(x[k], w[f"{p}.weight"], w[f"{p}.bias"]) for k, p in enumerate(norms)])
        return np.stack([w[f"linears.{k}.weight"] @ x[k] for k in range(n)])


def guided(given, null, coef):
    """Logits by classifier-free guidance."""
    return null + coef * (given - null)


def random_weights(config, seed):
    """Seeded random tensors of the PyTorch layout, float32, for the contents of a `config.json`."""
    c, rng, made = config, np.random.default_rng(seed), {}

    def matrix(name, rows, columns):
        made[name] = (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def norm(name, width):
        made[f"{name}.alpha"] = rng.uniform(0.5, 1.5, (1, 1, width)).astype(np.float32)

    def centring_norm(name, width):
        made[f"{name}.weight"], made[f"{name}.bias"] = rng.uniform(0.5, 1.5, (2, width)).astype(np.float32)

    def table(name, rows, width, rank=None):
        made[f"{name}.weight"] = rng.standard_normal((rows, rank or width)).astype(np.float32)
        if rank:
            matrix(f"{name}.low_rank.weight", width, rank)

    def demuxed(name, rows, width, rank=None):
        table(name, rows, width, rank)
        for out in ("out1", "out2"):
            matrix(f"{name}.{out}.weight", width, rank or width)

    def gate(name, width, feedforward):
        inner = 21 * width // 8 if feedforward == 4 * width else 2 * feedforward // 3
        matrix(f"{name}.linear_in.weight", 2 * inner, width)
        matrix(f"{name}.linear_out.weight", width, inner)

    dim, demux, rank = c["dim"], c.get("demux_second_stream"), c.get("depformer_low_rank_embeddings")
    repeat = c.get("kv_repeat", 1)
    (demuxed if demux else table)("text_emb", c["text_card"] + 1, dim)
    for k in range(c["n_q"]):
        table(f"emb.{k}", c["card"] + 1, dim)
    for i in range(c["num_layers"]):
        p = f"transformer.layers.{i}"
        norm(f"{p}.norm1", dim)
        norm(f"{p}.norm2", dim)
        matrix(f"{p}.self_attn.in_proj_weight", dim + 2 * dim // repeat, dim)
        matrix(f"{p}.self_attn.out_proj.weight", dim, dim)
        gate(f"{p}.gating", dim, int(c["hidden_scale"] * dim))
        if c.get("cross_attention"):
            centring_norm(f"{p}.norm_cross", dim)
            matrix(f"{p}.cross_attention.in_proj_weight", 3 * dim, dim)
            matrix(f"{p}.cross_attention.out_proj.weight", dim, dim)
    norm("out_norm", dim)
    matrix("text_linear.weight", c.get("text_card_out") or c["text_card"], dim)
    for i in range(c.get("extra_heads_num_heads", 0)):
        matrix(f"extra_heads.{i}.weight", c.get("extra_heads_dim", 6), dim)

    width, count = c["depformer_dim"], c["dep_q"]
    slices = max(c.get("depformer_weights_per_step_schedule") or range(count), default=-1) + 1
    repeat = c.get("depformer_kv_repeat") or repeat
    if count:
        (demuxed if demux else table)("depformer_text_emb", c["text_card"] + 1, width, rank)
    for k in range(count - 1):
        table(f"depformer_emb.{k}", c["card"] + 1, width, rank)
    for k in range(count):
        matrix(f"linears.{k}.weight", c["card"], width)
        if c.get("depformer_norm"):
            centring_norm(f"depformer_norms.{k}", width)
    for s in range(slices):
        matrix(f"depformer_in.{s}.weight", width, dim)
    for i in range(c["depformer_num_layers"] if count else 0):
        p = f"depformer.layers.{i}"
        norm(f"{p}.norm1", width)
        norm(f"{p}.norm2", width)
        matrix(f"{p}.self_attn.in_proj_weight", slices * (width + 2 * width // repeat), width)
        matrix(f"{p}.self_attn.out_proj.weight", slices * width, width)
        for s in range(slices):
            gate(f"{p}.gating.{s}", width, c["depformer_dim_feedforward"])

    for name, entry in (c.get("conditioners") or {}).items():
        p, of = f"condition_provider.conditioners.{name}", entry[entry["type"]]
        matrix(f"{p}.output_proj.weight", dim, of["dim"])
        made[f"{p}.learnt_padding"] = rng.standard_normal((1, 1, dim)).astype(np.float32)
        if entry["type"] == "lut":
            table(f"{p}.embed", of["n_bins"] + 1, of["dim"])
    return made


def inputs(config, text_tokens, depformer_tokens, user_codes):
    """What each position reads, [positions, 1 + n_q], from what was sampled at each: the rule of delays, spelled out."""
    positions, dep_q, n_q = len(text_tokens), config["dep_q"], config["n_q"]
    rows = np.zeros((positions, 1 + n_q), int)
    for p in range(positions):
        rows[p, 0] = config["text_card"] if p <= config["delays"][0] else text_tokens[p - 1]
        for k in range(n_q):
            delay = config["delays"][1 + k]
            if k < dep_q:
                rows[p, 1 + k] = config["card"] if p <= delay else depformer_tokens[k][p - 1]
            else:
                frame = p - 1 - delay
                rows[p, 1 + k] = config["card"] if frame < 0 else user_codes[k - dep_q][frame]
    return rows
