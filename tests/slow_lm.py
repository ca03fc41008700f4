"""The Moshi language model, slow and obvious: numpy in float64, with everything kept, and a mask for the window.

It is written from the description of the architecture, for tensors of the PyTorch layout, and compared with the real one.
"""

import numpy as np


def rms_norm(x, alpha):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8) * alpha.reshape(-1)


def rotate(x, positions, max_period):
    """`x` is [heads, steps, head_dim]; pairs (2i, 2i + 1) are rotated."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * max_period ** (-2 * np.arange(half) / x.shape[-1])
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * np.cos(angle) - b * np.sin(angle)
    out[..., 1::2] = a * np.sin(angle) + b * np.cos(angle)
    return out


def attention(x, w_in, w_out, heads, window, max_period):
    """`x` is [steps, dim]; every step sees itself and the `window - 1` before it."""
    steps, dim = x.shape
    qkv = (x @ w_in.T).reshape(steps, 3, heads, dim // heads).transpose(1, 2, 0, 3)
    q, k, v = qkv
    if max_period is not None:
        q, k = (rotate(a, np.arange(steps), max_period) for a in (q, k))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim // heads)
    age = np.arange(steps)[:, None] - np.arange(steps)[None, :]
    scores[:, (age < 0) | (age >= window)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(1, 0, 2).reshape(steps, dim) @ w_out.T


def gating(x, w_in, w_out):
    a, b = np.split(x @ w_in.T, 2, axis=-1)
    return (a / (1 + np.exp(-a)) * b) @ w_out.T


class SlowLm:
    """`weights` are the tensors of the PyTorch layout, `config` the contents of its `config.json`."""

    def __init__(self, weights, config):
        self.w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
        self.c = config

    def temporal(self, tokens):
        """`tokens` [steps, 1 + n_q] → output after the norm [steps, dim] and text logits [steps, text_card]."""
        w, c = self.w, self.c
        tables = [w["text_emb.weight"]] + [w[f"emb.{k}.weight"] for k in range(c["n_q"])]
        x = sum(np.where(tokens[:, i, None] < 0, 0, table[tokens[:, i]]) for i, table in enumerate(tables))
        for i in range(c["num_layers"]):
            p = f"transformer.layers.{i}"
            x = x + attention(
                rms_norm(x, w[f"{p}.norm1.alpha"]),
                w[f"{p}.self_attn.in_proj_weight"],
                w[f"{p}.self_attn.out_proj.weight"],
                c["num_heads"],
                c["context"],
                c["max_period"],
            )
            x = x + gating(
                rms_norm(x, w[f"{p}.norm2.alpha"]),
                w[f"{p}.gating.linear_in.weight"],
                w[f"{p}.gating.linear_out.weight"],
            )
        x = rms_norm(x, w["out_norm.alpha"])
        return x, x @ w["text_linear.weight"].T

    def depformer(self, h, text_token, codes):
        """One step: `h` [dim], the text token, and the codes that were chosen → logits [dep_q, card]."""
        w, c = self.w, self.c
        d, n = c["depformer_dim"], c["dep_q"]
        previous = [w["depformer_text_emb.weight"][text_token]]
        previous += [w[f"depformer_emb.{k}.weight"][codes[k]] for k in range(n - 1)]
        x = np.stack([w[f"depformer_in.{k}.weight"] @ h + previous[k] for k in range(n)])
        for i in range(c["depformer_num_layers"]):
            p = f"depformer.layers.{i}"
            y = rms_norm(x, w[f"{p}.norm1.alpha"])
            w_in, w_out = w[f"{p}.self_attn.in_proj_weight"], w[f"{p}.self_attn.out_proj.weight"]
            heads = c["depformer_num_heads"]
            qkv = np.stack([w_in[3 * d * k : 3 * d * (k + 1)] @ y[k] for k in range(n)]).reshape(
                n, 3, heads, d // heads
            )
            out = np.zeros((n, heads, d // heads))
            for k in range(n):
                for head in range(heads):
                    q, keys, values = qkv[k, 0, head], qkv[: k + 1, 1, head], qkv[: k + 1, 2, head]
                    score = keys @ q / np.sqrt(d // heads)
                    weight = np.exp(score - score.max())
                    out[k, head] = weight / weight.sum() @ values
            x = x + np.stack([w_out[d * k : d * (k + 1)] @ out[k].reshape(d) for k in range(n)])
            y = rms_norm(x, w[f"{p}.norm2.alpha"])
            x = x + np.stack(
                [
                    gating(
                        y[k], w[f"{p}.gating.{k}.linear_in.weight"], w[f"{p}.gating.{k}.linear_out.weight"]
                    )
                    for k in range(n)
                ]
            )  # fmt: skip
        return np.stack([w[f"linears.{k}.weight"] @ x[k] for k in range(n)])


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
