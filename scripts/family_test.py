"""Compare the engine with the answers of reference implementations, for any model of the family.

PYTHONPATH=. python scripts/family_test.py FOLDER… [--engine mlx]

A folder holds `config.json`, `lm.safetensors`, `golden.safetensors`, and what lies beside them (`script.json`, `words.json`,
voices). The program prints for each run how many tokens are equal, and the largest difference of logits. It ends with 1 if a
token differs, or a logit by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.system.signals import Signals

TOLERANCE = 1e-4


@dataclass
class Comparison:
    """What one run of a model gives, beside what it should give."""

    name: str
    tokens: list[tuple[Any, Any]] = field(default_factory=list)
    numbers: list[tuple[Any, Any]] = field(default_factory=list)

    def line(self) -> str:
        """Describe the result on one line."""
        equal, total = self.equal
        return f"{self.name}: {equal} of {total} tokens equal, logits differ by {self.difference:.1e} at most"

    @property
    def equal(self) -> tuple[int, int]:
        """How many tokens are equal, of how many."""
        pairs = [(np.asarray(got), np.asarray(wanted)) for got, wanted in self.tokens]
        same = sum(int((got == wanted).sum()) if got.shape == wanted.shape else 0 for got, wanted in pairs)
        return same, sum(wanted.size for _, wanted in pairs)

    @property
    def difference(self) -> float:
        """The largest difference of a logit."""
        pairs = [(np.asarray(got), np.asarray(wanted)) for got, wanted in self.numbers]
        return max(float(np.abs(a - b).max()) if a.shape == b.shape else np.inf for a, b in pairs)

    @property
    def good(self) -> bool:
        """Whether all tokens are equal, and all logits close enough."""
        equal, total = self.equal
        return equal == total and self.difference <= TOLERANCE


def compare(folder: Path) -> Iterator[Comparison]:
    """Run the model in a folder on what its golden file holds."""
    import mlx.core as mx

    from msh_mlx.model.config import LmConfig
    from msh_mlx.model.families import family_of
    from msh_mlx.weights.checkpoint import load_lm

    config = LmConfig.from_file(folder / "config.json")
    lm = load_lm(folder / "lm.safetensors", config, mx.float32)
    golden = {name: np.array(array) for name, array in mx.load(str(folder / "golden.safetensors")).items()}
    runs: dict[str, Callable[..., Iterator[Comparison]]] = {
        "stt": _hear, "tts": _speak, "hibiki": _translate, "personaplex": _converse,
    }  # fmt: skip
    yield from runs[family_of(config).name](folder, lm, golden)


def _greedy() -> dict[str, Any]:
    from msh_mlx.model.sampling import Sampler

    return {"text_sampler": Sampler(0), "audio_sampler": Sampler(0), "seed": 0}


def _hear(folder: Path, lm: Any, golden: dict[str, Any]) -> Iterator[Comparison]:
    from msh_mlx.model.families.stt import Timing, WordTimes
    from msh_mlx.model.generate import LmGen

    gen, text, logits, heads = LmGen(lm, **_greedy()), [], [], []
    words = WordTimes(Timing.of(lm.config))
    found = []

    def note(token: int) -> None:
        text.append(token)
        logits.append(np.array(gen.text_logits))
        heads.append(np.array(gen.extra_heads))
        if word := words.push(token):
            found.append(word)

    note(gen.prime())
    for codes in golden["user_codes"].T:
        note(gen.step(codes).text_token)
    result = Comparison("text and heads", [(text, golden["text_tokens"])])
    result.numbers = [(logits, golden["text_logits"]), (heads, golden["extra_heads"])]
    if (path := folder / "words.json").is_file():
        wanted = json.loads(path.read_text())
        # Each as its tokens and its times; the last one's end may be missing.
        said = [[*word.tokens, _time(word.start), _time(word.end)] for word in found]
        told = [[*word["tokens"], _time(word["start"]), _time(word["stop"])] for word in wanted["words"]]
        result.tokens.append(([n for word in said for n in word], [n for word in told for n in word]))
    yield result


def _time(seconds: float | None) -> int:
    return -1 if seconds is None else round(1000 * seconds)


def _translate(folder: Path, lm: Any, golden: dict[str, Any]) -> Iterator[Comparison]:
    from msh_mlx.model.families.hibiki import steering
    from msh_mlx.model.generate import LmGen

    named = sorted(name.removesuffix(".text_tokens") for name in golden if name.endswith(".text_tokens"))
    for run in named or [""]:
        of = {key: golden[f"{run}.{key}" if run else key] for key in ("text_tokens", "text_logits", "depformer_tokens")}
        coef = float(run.removeprefix("cfg")) if run.startswith("cfg") else 1.0
        gen = LmGen(lm, steering=steering(lm, coef), **_greedy())
        text, logits, codes = [gen.prime()], [np.array(gen.text_logits)], [gen.newest_codes]
        for heard in golden["user_codes"].T:
            ended = (heard == lm.config.card).all()
            text.append((gen.end_input() if ended else gen.step(heard)).text_token)
            logits.append(np.array(gen.text_logits))
            codes.append(gen.newest_codes)
        result = Comparison(run or "plain", [(text, of["text_tokens"]), (np.array(codes).T, of["depformer_tokens"])])
        result.numbers = [(logits, of["text_logits"])]
        yield result


def _converse(folder: Path, lm: Any, golden: dict[str, Any]) -> Iterator[Comparison]:
    from msh_mlx.model.families import personaplex
    from msh_mlx.model.generate import LmGen
    from msh_mlx.weights.voice import read_voice

    streams, padding = lm.config.streams, lm.config.existing_text_padding_id
    silence, sine, text_prompt = golden["silence"], golden["sine"], golden["text_prompt"].tolist()
    prompt = personaplex.prompt(streams, padding, silence, sine, voice=golden["voice_codes"], text=text_prompt)
    prompts = {"codes": prompt}
    for file in sorted(folder.glob("voice.*")):
        voice = read_voice(file)
        prompts[file.suffix[1:]] = personaplex.prompt(streams, padding, silence, sine, voice=voice, text=text_prompt)
    for run, prompt in prompts.items():
        name = "codes" if run == "codes" else "pt"
        of = {key: golden[f"{name}.{key}"] for key in ("text_tokens", "text_logits", "agent_frames")}
        gen = LmGen(lm, prompt=prompt, **_greedy())
        text, logits, frames = [gen.prime()], [np.array(gen.text_logits)], []
        for heard in golden["user_codes"].T:
            step = gen.step(heard)
            text.append(step.text_token)
            logits.append(np.array(gen.text_logits))
            frames.append(step.codes)
        result = Comparison(run, [(text, of["text_tokens"]), (np.array(frames).T, of["agent_frames"])])
        result.numbers = [(logits, of["text_logits"])]
        yield result


def _speak(folder: Path, lm: Any, golden: dict[str, Any]) -> Iterator[Comparison]:
    from msh_mlx.model.families import tts
    from msh_mlx.model.generate import LmGen

    script = json.loads((folder / "script.json").read_text())
    words = [tts.Entry(tuple(entry["tokens"]), entry["padding"]) for entry in script["entries"]]
    for run, spec in script["runs"].items():
        voices = [golden[f"voice.{i}"][0].T for i in spec.get("voices", [])]
        coef = spec.get("cfg_coef", 1.0)
        steering = tts.steering(lm, voices, cfg=spec.get("cfg"), coef=coef, codebooks=spec["n_q"])
        machine = tts.WordMachine.of(lm.config)
        machine.entries.extend(words)
        prefix = golden.get("prefix_codes")
        speech = tts.SpeechScript.of(lm.config, machine, codebooks=spec["n_q"], prefix=prefix, guided=coef != 1)
        gen = LmGen(lm, steering=steering, script=speech, **_greedy())
        text, logits, codes = [], [], []
        while (step := gen.advance()) is not None:
            text.append(step.text_token)
            logits.append(np.array(gen.text_logits))
            codes.append(gen.newest_codes[: spec["n_q"]])
        of = {key: golden[f"{run}.{key}"] for key in ("text", "codes", "end_step", "consumption_times", "text_logits")}
        tokens = [(text, of["text"]), (np.array(codes).T, of["codes"])]
        tokens += [([machine.end], of["end_step"]), (machine.begun, of["consumption_times"])]
        yield Comparison(run, tokens, [(logits, of["text_logits"])])


def main() -> int:
    """Run the script and return its exit code."""
    parser = Parser(
        prog="family_test.py", description="Compare the engine with the answers of reference implementations."
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="compare with this folder's answers")
    parser.add_argument("--engine", choices=("mlx",), default="mlx", help="run this engine (default: %(default)s)")
    return guard(lambda signals: try_all(parser.parse_args(), signals))


def try_all(args: argparse.Namespace, signals: Signals) -> int:
    """Compare all folders, and print a line for each run."""
    good = True
    for folder in args.folders:
        for comparison in compare(folder):
            signals.check()
            print(f"{folder.name} {comparison.line()}", flush=True)
            good = good and comparison.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
