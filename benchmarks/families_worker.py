"""One model of the family in a process of its own, for families.py. It takes commands as lines of JSON, and answers with lines.

It needs only numpy, MLX and the model's package, so that the interpreter of any environment runs it.
"""

import json
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
from lm_worker import Counts
from serving import serve

# Tokens that every model has.
SENTENCE = [([20, 31, 42], 2), ([17], 0), ([5, 8], 1), ([], 3), ([9, 10, 11, 12], 3), ([33], 0)] * 1000
TEMPERATURE = 0.6  # of speech, as published


class Ours:
    """Our model: `kind` is "ours", or the name of another way to run text to speech, of word_machine.py."""

    def __init__(self, kind, family, weights, config, voice, dtype):
        self._kind, self._family, self._files, self._dtype = kind, family, (weights, config), dtype
        self._voice = voice

    def load(self):
        from msh_mlx import LmGen, Sampler, load_lm
        from msh_mlx.model.families import hibiki, tts

        self.lm = lm = load_lm(*self._files, self._dtype, engine="mlx")
        if self._family == "stt":
            self._gen = LmGen(lm, text_sampler=Sampler(0), seed=1)
            self._gen.prime()
        elif self._family == "tts":
            entries = [tts.Entry(tuple(tokens), padding) for tokens, padding in SENTENCE]
            machine = tts.WordMachine.of(lm.config)
            machine.entries.extend(entries)
            assert all(max(entry.tokens, default=0) < lm.config.text_card for entry in entries)
            script = tts.SpeechScript(lm.config.streams, machine, delay_steps=0)  # speaks from the first step on
            voice = np.array(mx.load(self._voice)["speaker_wavs"])[0].T
            sampler = Sampler(TEMPERATURE)
            cfg = "2.0" if "cfg" in lm.config.conditioners else None
            steering = tts.steering(lm, [voice], cfg=cfg)
            self._gen = LmGen(lm, text_sampler=sampler, audio_sampler=sampler, seed=1, steering=steering, script=script)
            if self._kind != "ours":
                from word_machine import WAYS

                self._gen = WAYS[self._kind](self._gen, script, machine)
            self._gen.advance()
        else:
            self._gen = LmGen(lm, seed=1, steering=hibiki.steering(lm))
            self._gen.prime()

    def steps(self, frames):
        """Run a step for each of the user's frames. Return the seconds of each."""
        seconds = []
        for codes in frames:
            begin = perf_counter()
            self._said = self._gen.advance() if self._family == "tts" else self._gen.step(codes)
            seconds.append(perf_counter() - begin)
        return seconds

    def said(self):
        """Return the newest text token and frame."""
        codes = self._said.codes
        return [self._said.text_token, None if codes is None else codes.tolist()]

    def bytes_per_step(self):
        from msh_mlx.bench import bytes_per_step

        return bytes_per_step(self.lm)


class Peer:
    """The peer's model, used as in its own programs, with the same shapes as `Ours`."""

    def __init__(self, kind, family, weights, config, voice, dtype):
        self._family, self._weights, self._voice, self._dtype = family, weights, voice, dtype
        self._config = json.loads(Path(config).read_text())

    def load(self):
        import mlx.nn as nn
        from moshi_mlx import models, utils

        config = models.LmConfig.from_config_dict(self._config)
        self.lm = models.Lm(config)
        self.lm.set_dtype(getattr(mx, self._dtype))
        packed = {name.removesuffix(".scales") for name in mx.load(self._weights) if name.endswith(".scales")}
        nn.quantize(self.lm, 32, 4, lambda name, module: name in packed)
        self.lm.load_weights(self._weights, strict=True)
        if self._family != "tts":
            self._gen = models.LmGen(
                self.lm,
                max_steps=1000,
                text_sampler=utils.Sampler(temp=0.0 if self._family == "stt" else 0.8, top_k=25),
                audio_sampler=utils.Sampler(temp=0.8, top_k=250),
            )
            self.steps([[0] * self.lm.cfg.other_codebooks] * 2)
            return
        from moshi_mlx.models.tts import Entry, TTSModel

        mimi = SimpleNamespace(frame_rate=12.5, reset_all=lambda: None)
        self._tts = TTSModel(self.lm, mimi, None, temp=TEMPERATURE, n_q=config.audio_codebooks, raw_config=self._config)
        self._entries = [Entry(tokens, "", padding) for tokens, padding in SENTENCE]
        self._attributes = self._tts.make_condition_attributes([self._voice], 2.0)

    def steps(self, frames):
        """As `Ours.steps`."""
        seconds = []
        if self._family == "tts":  # each call begins a speech; the first step warms up
            times = []
            self._tts.max_gen_length = 2 + len(frames)
            self._tts.generate([self._entries], [self._attributes], on_text_hook=lambda _: times.append(perf_counter()))
            return np.diff(times)[-len(frames) :].tolist()
        for codes in frames:
            begin = perf_counter()
            text, frame = self._gen.step(mx.array(codes)[None])[0].item(), self._gen.last_audio_tokens()
            if self._family != "stt" and frame is not None:
                np.array(frame)
            seconds.append(perf_counter() - begin)
            self._text = text
        return seconds


class Worker:
    """The commands."""

    def __init__(self, kind, family, weights, config, voice, dtype):
        self.model = (Peer if kind == "peer" else Ours)(kind, family, weights, config, voice, dtype)
        c = json.loads(Path(config).read_text())
        self.codes = np.random.default_rng(1).integers(0, c["card"], (256, c["n_q"] - c["dep_q"]))
        self.at = 0

    def start(self):
        """Load, and warm up. Return the bytes that a step reads, if that is known, and MLX's memory."""
        self.model.load()
        read = self.model.bytes_per_step() if hasattr(self.model, "bytes_per_step") else None
        return {"read": read, "held": mx.get_active_memory()}

    def steps(self, count):
        """Run `count` steps. Return the seconds of each."""
        frames = [self.codes[(self.at + i) % len(self.codes)].tolist() for i in range(count)]  # repeated after a while
        self.at += count
        return self.model.steps(frames)

    def count(self, count):
        """Count over `count` steps. Return the figures per step."""
        with Counts() as counts:
            self.steps(count)
        return {k: getattr(counts, k) / count for k in ("syncs", "evaluations", "primitives")}

    def said(self):
        """Return what the newest step said (ours only)."""
        return self.model.said()


if __name__ == "__main__":
    serve(Worker)
