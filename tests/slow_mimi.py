"""The codec, slow and obvious: numpy in float64, offline, from the description of the architecture.

Arrays are [channels, time], weights as stored. Tests compare the real codec with it.
"""

import math

import numpy as np
from make_mimi_weights import V01

erf = np.vectorize(math.erf)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def conv(x, weight, bias=None, stride=1, repeat_first=False):
    kernel = weight.shape[2]
    x = np.pad(x, ((0, 0), (kernel - stride, 0)), mode="edge" if repeat_first else "constant")
    steps = (x.shape[1] - kernel) // stride + 1
    out = sum(weight[:, :, j] @ x[:, j : j + (steps - 1) * stride + 1 : stride] for j in range(kernel))
    return out if bias is None else out + bias[:, None]


def conv_transposed(x, weight, bias=None, stride=1, per_channel=False):
    kernel, steps = weight.shape[2], x.shape[1]
    out = np.zeros((x.shape[0] if per_channel else weight.shape[1], steps * stride + kernel - stride))
    for j in range(kernel):
        part = x * weight[:, 0, j, None] if per_channel else weight[:, :, j].T @ x
        out[:, j : j + (steps - 1) * stride + 1 : stride] += part
    out = out[:, : steps * stride]
    return out if bias is None else out + bias[:, None]


def layer_norm(x, weight, bias):
    mean = x.mean(0, keepdims=True)
    variance = ((x - mean) ** 2).mean(0, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight[:, None] + bias[:, None]


class SlowMimi:
    """`tensors` as in the file, `config` as in its metadata; missing keys take the v0.1 value."""

    def __init__(self, tensors, config=None):
        self.w = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
        self.c = {**V01, **(config or {})}

    def _conv(self, name, x, stride=1):
        return conv(x, self.w[f"{name}.conv.conv.weight"], self.w[f"{name}.conv.conv.bias"], stride)

    def _residual(self, name, x):
        return x + self._conv(f"{name}.block.3", elu(self._conv(f"{name}.block.1", elu(x))))

    def _transformer(self, name, x):
        w, c = self.w, self.c
        heads, steps = c["num_heads"], x.shape[1]
        width = c["dimension"] // heads
        angle = np.arange(steps)[:, None] * c["max_period"] ** (-2 * np.arange(width // 2) / width)
        age = np.arange(steps)[:, None] - np.arange(steps)[None, :]
        hidden = (age < 0) | (age >= c["context"])

        def rotate(a):
            out = np.empty_like(a)
            out[..., 0::2] = a[..., 0::2] * np.cos(angle) - a[..., 1::2] * np.sin(angle)
            out[..., 1::2] = a[..., 0::2] * np.sin(angle) + a[..., 1::2] * np.cos(angle)
            return out

        for i in range(c["num_layers"]):
            p = f"{name}.transformer.layers.{i}"
            y = layer_norm(x, w[f"{p}.norm1.weight"], w[f"{p}.norm1.bias"])
            q, k, v = (w[f"{p}.self_attn.in_proj_weight"] @ y).reshape(3, heads, width, steps).transpose(0, 1, 3, 2)
            scores = rotate(q) @ rotate(k).transpose(0, 2, 1) / math.sqrt(width)
            scores[:, hidden] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            y = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1).reshape(-1, steps)
            x = x + w[f"{p}.layer_scale_1.scale"][:, None] * (w[f"{p}.self_attn.out_proj.weight"] @ y)
            y = layer_norm(x, w[f"{p}.norm2.weight"], w[f"{p}.norm2.bias"])
            y = w[f"{p}.linear2.weight"] @ gelu(w[f"{p}.linear1.weight"] @ y)
            x = x + w[f"{p}.layer_scale_2.scale"][:, None] * y
        return x

    def _books(self):
        for part, count in (("rvq_first", 1), ("rvq_rest", self.c["n_q"] - 1)):
            books = []
            for k in range(count):
                p = f"quantizer.{part}.vq.layers.{k}._codebook"
                books.append(self.w[f"{p}.embedding_sum"] / np.maximum(self.w[f"{p}.cluster_usage"], 1e-5)[:, None])
            yield f"quantizer.{part}", books

    def latent(self, pcm):
        """`pcm` [T] → [dimension, ceil(T / frame)]."""
        frame = 2 * math.prod(self.c["ratios"])
        x = np.pad(np.asarray(pcm, np.float64), (0, -len(pcm) % frame))[None]
        x, i = self._conv("encoder.model.0", x), 1
        for ratio in reversed(self.c["ratios"]):
            x = self._residual(f"encoder.model.{i}", x)
            x, i = self._conv(f"encoder.model.{i + 2}", elu(x), ratio), i + 3
        x = self._conv(f"encoder.model.{i + 1}", elu(x))
        x = self._transformer("encoder_transformer", x)
        return conv(x, self.w["downsample.conv.conv.conv.weight"], stride=2, repeat_first=True)

    def quantize(self, latent, num_codebooks):
        """`latent` [dimension, m] → codes [num_codebooks, m], and by how much each beat the second best (squared)."""
        codes, margins = [], []
        for name, books in self._books():
            rest = (self.w[f"{name}.input_proj.weight"][:, :, 0] @ latent).T
            for book in books:
                distance = ((rest[:, None, :] - book[None]) ** 2).sum(-1)
                best = distance.argmin(1)
                two = np.sort(distance, axis=1)[:, :2]
                codes.append(best)
                margins.append((two[:, 1] - two[:, 0]) / two[:, 0])
                rest = rest - book[best]
        return np.array(codes[:num_codebooks]), np.array(margins[:num_codebooks])

    def decode(self, codes):
        """`codes` [K, m] → pcm [m · frame]."""
        x, row = 0, 0
        for name, books in self._books():
            used = books[: max(0, len(codes) - row)]
            if used:
                total = sum(book[codes[row + k]] for k, book in enumerate(used))
                x = x + self.w[f"{name}.output_proj.weight"][:, :, 0] @ total.T
            row += len(books)
        x = conv_transposed(x, self.w["upsample.convtr.convtr.convtr.weight"], stride=2, per_channel=True)
        x = self._transformer("decoder_transformer", x)
        x, i = self._conv("decoder.model.0", x), 1
        for ratio in self.c["ratios"]:
            p = f"decoder.model.{i + 1}.convtr.convtr"
            x = conv_transposed(elu(x), self.w[f"{p}.weight"], self.w[f"{p}.bias"], ratio)
            x, i = self._residual(f"decoder.model.{i + 2}", x), i + 3
        return self._conv(f"decoder.model.{i + 1}", elu(x))[0]
