"""Compare an engine with the answers of reference implementations, for any model of the family.

PYTHONPATH=. python scripts/family_test.py FOLDER… [--engine mlx|native]

A folder holds `config.json`, `lm.safetensors`, `golden.safetensors`, and what lies beside them (`script.json`, `words.json`,
voices). The program prints for each run how many tokens are equal, and the largest difference of logits. It ends with 1 if a
token differs, or a logit by more than 1e-4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.errors import InputError
from msh_mlx.system.inputs import check_file
from msh_mlx.system.signals import Signals

TOLERANCE = 1e-4
# Arrays by the names that they have in a golden file. Integers are tokens, columns or positions; floats are logits.
Arrays = dict[str, Any]


# ---- what a folder holds ---------------------------------------------------------------------------------------------------


class Given(Arrays):
    """The arrays of a folder. One that is missing is an error of the user's."""

    folder = Path()

    def __missing__(self, name: str) -> Any:
        raise InputError(f"{self.folder / 'golden.safetensors'} has no {name}", "give another folder")


@dataclass(frozen=True)
class Run:
    """One run of a model: its name, what the run itself says (`options`), and what must come out."""

    name: str
    options: dict[str, Any]
    wanted: Arrays


@dataclass(frozen=True)
class Folder:
    """A model with what goes in, and what must come out.

    `family` is the name of the model's family, `given` the arrays that go in, `entries` the words of a script.
    """

    path: Path
    family: str
    given: Given
    entries: list[dict[str, Any]]
    runs: list[Run]

    @classmethod
    def read(cls, path: Path) -> Folder:
        """Read everything but the weights.

        Raises
        ------
        InputError
            A file or an array is missing, or cannot be read.
        """
        try:
            return cls._read(path)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            what = f"{path} does not have the form of tests/golden/*-small ({type(error).__name__}: {error})"
            raise InputError(what, "give another folder") from None

    @classmethod
    def _read(cls, path: Path) -> Folder:
        from msh_mlx.model.config import LmConfig, read_config
        from msh_mlx.model.families import family_of
        from msh_mlx.weights.safetensors import read_header

        family = family_of(LmConfig.from_file(path / "config.json")).name
        check_file(path / "lm.safetensors")
        read_header(path / "golden.safetensors")  # which says what is wrong with the file
        arrays = Given(load_file(path / "golden.safetensors"))
        arrays.folder = path
        script = read_config(path / "script.json") if family == "tts" else {}
        # A run's answers are RUN.NAME; those of the only run may be NAME.
        named = script.get("runs", {}) or {key: {} for key in sorted({n.split(".")[0] for n in arrays if "." in n})}
        wanted = {run: {n.split(".", 1)[1]: a for n, a in arrays.items() if n.startswith(f"{run}.")} for run in named}
        inputs = {"user_codes", "end_of_input", "voice_codes", "text_prompt", "silence", "sine", "prefix_codes"}
        if not named:
            named, wanted = {"": {}}, {"": {n: a for n, a in arrays.items() if n not in inputs}}
        if (words := path / "words.json").is_file():
            wanted[""]["words"] = flat_words(read_config(words)["words"])
        runs = [Run(name, {**options}, wanted[name]) for name, options in named.items()]
        if family == "personaplex":  # of a voice in both forms of a file, the same must come out
            files = [file.name for file in sorted(path.glob("voice.*"))]
            runs = [run for run in runs if run.name != "pt"] + [Run(name, {}, wanted["pt"]) for name in files]
        entries = [{"tokens": tuple(e["tokens"]), "padding": e["padding"]} for e in script.get("entries", [])]
        return cls(path, family, arrays, entries, runs)


def flat_words(words: list[dict[str, Any]]) -> Any:
    """Write words as one array: of each its tokens, its start and its end in milliseconds, −1 for an end that is missing."""
    rows = [[*word["tokens"], *(_milliseconds(word[key]) for key in ("start", "stop"))] for word in words]
    return np.array([number for row in rows for number in row])


def _milliseconds(seconds: float | None) -> int:
    return -1 if seconds is None else round(1000 * seconds)


# ---- engines ---------------------------------------------------------------------------------------------------------------


class Engine(Protocol):
    """Runs the model of a folder."""

    def __init__(self, folder: Folder) -> None:
        """Load the model."""

    def answers(self, run: Run) -> Arrays:
        """Return everything that a run gives, by the names of the golden file, greedily chosen."""


class Ours:
    """An engine of msh_mlx, in float32."""

    name = ""

    def __init__(self, folder: Folder, lm: Any = None) -> None:
        from msh_mlx.weights.load import load_lm

        path = folder.path
        self._folder = folder
        self.lm = lm or load_lm(path / "lm.safetensors", path / "config.json", "float32", engine=self.name)

    def answers(self, run: Run) -> Arrays:
        """As `Engine.answers`."""
        ways: dict[str, Callable[[Run], Arrays]] = {
            "moshi": self._talk,
            "stt": self._transcribe,
            "tts": self._speak,
            "hibiki": self._talk,
            "personaplex": self._converse,
        }
        return ways[self._folder.family](run)

    def _conversation(self, **options: Any) -> Any:
        from msh_mlx.model.generate import LmGen
        from msh_mlx.model.sampling import Sampler

        return LmGen(self.lm, text_sampler=Sampler(0), audio_sampler=Sampler(0), seed=0, **options)

    def _heard(self, gen: Any) -> tuple[list[Any], list[Any]]:
        """Prime, and hear all frames. Return what each position chose and from what, and what each step returned."""
        kept, steps = [], []

        def keep(token: int) -> None:
            heads = np.array(gen.extra_heads) if self.lm.config.extra_heads_num_heads else None
            kept.append((token, gen.newest_codes, np.array(gen.text_logits), heads))

        keep(gen.prime())
        for codes in self._folder.given["user_codes"].T:
            steps.append(gen.end_input() if len(codes) and (codes == self.lm.config.card).all() else gen.step(codes))
            keep(steps[-1].text_token)
        return kept, steps

    def _talk(self, run: Run) -> Arrays:
        from msh_mlx.model.families import hibiki

        coef = float(run.name.removeprefix("cfg")) if run.name.startswith("cfg") else 1.0
        kept, steps = self._heard(self._conversation(steering=hibiki.steering(self.lm, coef)))
        text, codes, logits, _ = zip(*kept, strict=True)
        frames = np.array([step.codes for step in steps if step.codes is not None]).T
        return {
            "text_tokens": np.array(text),
            "text_logits": np.array(logits),
            "depformer_tokens": np.array(codes).T,
            "frames": np.concatenate([np.array(text)[None, : frames.shape[1]], frames]),
        }

    def _transcribe(self, run: Run) -> Arrays:
        from msh_mlx.model.families.stt import Timing, WordTimes

        kept, _ = self._heard(self._conversation())
        text, _, logits, heads = zip(*kept, strict=True)
        words = WordTimes(Timing.of(self.lm.config))
        found = [word for token in text if (word := words.push(token))]
        described = [{"tokens": word.tokens, "start": word.start, "stop": word.end} for word in found]
        return {
            "text_tokens": np.array(text),
            "text_logits": np.array(logits),
            "extra_heads": np.array(heads),
            "words": flat_words(described),
        }

    def _converse(self, run: Run) -> Arrays:
        from msh_mlx.model.families import personaplex
        from msh_mlx.weights.voice import read_voice

        given, config = self._folder.given, self.lm.config
        silence, sine = given["silence"], given["sine"]
        voice = given["voice_codes"] if run.name == "codes" else read_voice(self._folder.path / run.name)
        prompt = personaplex.prompt(
            config.streams,
            config.existing_text_padding_id,
            silence,
            sine,
            voice=voice,
            text=given["text_prompt"].tolist(),
        )
        kept, steps = self._heard(self._conversation(prompt=prompt))
        text, codes, logits, _ = zip(*kept, strict=True)
        columns, frames = np.array(codes).T, np.array([step.codes for step in steps]).T
        delayed = np.array(config.delays[1 : 1 + config.dep_q]) > 0
        columns[delayed, 0] = silence[delayed]  # given by the prompt, whatever was chosen there
        # The original is one call late: at first it hands out the last frame of the prompt.
        said = np.concatenate([np.array(text)[None, :-1], frames])
        before = np.array([config.existing_text_padding_id, *silence])
        return {
            "text_tokens": np.array(text),
            "text_logits": np.array(logits),
            "agent_columns": columns,
            "agent_frames": frames,
            "nvidia_frames": np.concatenate([before[:, None], said[:, :-1]], axis=1),
        }

    def _speak(self, run: Run) -> Arrays:
        from msh_mlx.model.families import tts

        given, options = self._folder.given, run.options
        voices = [given[f"voice.{i}"][0].T for i in options.get("voices", [])]
        coef, codebooks = options.get("cfg_coef", 1.0), options.get("n_q", self.lm.config.dep_q)
        machine = tts.WordMachine.of(self.lm.config)
        machine.entries.extend(tts.Entry(**entry) for entry in self._folder.entries)
        prefix = given.get("prefix_codes")
        script = tts.SpeechScript.of(self.lm.config, machine, codebooks=codebooks, prefix=prefix, guided=coef != 1)
        steering = tts.steering(self.lm, voices, cfg=options.get("cfg"), coef=coef, codebooks=codebooks)
        gen = self._conversation(steering=steering, script=script)
        text, logits, codes = [], [], []
        while (step := gen.advance()) is not None:
            text.append(step.text_token)
            logits.append(np.array(gen.text_logits))
            codes.append(gen.newest_codes[:codebooks])
        # Code k of frame f is in the column that position f + delay chooses.
        delays, columns = self.lm.config.delays[1 : 1 + codebooks], np.array(codes).T
        count = columns.shape[1] - self.lm.config.max_delay
        frames = [columns[k, delay : delay + count] for k, delay in enumerate(delays)]
        return {
            "sampled_text": np.array(logits).argmax(1),
            "text": np.array(text),
            "text_logits": np.array(logits),
            "codes": columns,
            "frames": np.array(frames),
            "end_step": np.array([machine.end]),
            "consumption_times": np.array(machine.begun),
        }


class Mlx(Ours):
    """The engine that MLX computes."""

    name = "mlx"


class Native(Ours):
    """The engine in Rust."""

    name = "native"


ENGINES: dict[str, type[Engine]] = {
    "mlx": Mlx,
    "native": Native,
}


# ---- comparing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How far a run's answers are right.

    Of `total` tokens, `equal` are equal. `difference` is the largest difference of a logit; infinite: some are missing.
    """

    name: str
    equal: int
    total: int
    difference: float

    @property
    def good(self) -> bool:
        """Whether all tokens are equal, of some, and all logits close enough."""
        return 0 < self.equal == self.total and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return f"{self.name}: {self.equal} of {self.total} tokens equal, logits differ by {self.difference:.1e} at most"


def compared(name: str, answers: Arrays, wanted: Arrays) -> Comparison:
    """Compare a run's answers with the wanted ones."""
    equal, total, difference = 0, 0, 0.0
    for key, right in wanted.items():
        found = answers.get(key)
        alike = found is not None and found.shape == right.shape
        if right.dtype.kind == "f":
            # np.max, unlike max, gives NaN where one is NaN.
            difference = float(np.max(np.abs(found - right), initial=difference)) if alike else np.inf
        else:
            total += right.size
            equal += int((found == right).sum()) if alike else 0
    return Comparison(name, equal, total, difference)


def compare(path: Path, engine: str = "native") -> Iterator[Comparison]:
    """Run the model in a folder on what lies beside it, and compare each run.

    Raises
    ------
    InputError
        A file is missing or wrong.
    """
    folder = Folder.read(path)
    loaded = ENGINES[engine](folder)
    for run in folder.runs:
        yield compared(" ".join(filter(None, (path.name, run.name))), loaded.answers(run), run.wanted)


def main() -> int:
    """Run the script and return its exit code."""
    parser = Parser(
        prog="family_test.py", description="Compare an engine with the answers of reference implementations."
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="compare with this folder's answers")
    parser.add_argument("--engine", choices=ENGINES, default="native", help="run this engine (default: %(default)s)")
    return guard(lambda signals: try_all(parser.parse_args(), signals))


def try_all(args: argparse.Namespace, signals: Signals) -> int:
    """Compare all folders, and print a line for each run."""
    good = True
    for folder in args.folders:
        for comparison in compare(folder, args.engine):
            signals.check()
            print(comparison, flush=True)
            good = good and comparison.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
