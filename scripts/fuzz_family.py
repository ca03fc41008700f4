"""Damage what a user may give to a model of the family, again and again: each is refused in one sentence, or runs.

PYTHONPATH=. python scripts/fuzz_family.py [--count N] [--seed S] [--kind KIND] [--engine ENGINE]

The kinds: `configuration` (of every family, with its model's file), `model` (such a file's header), `pt` and `voice` (voices in
PyTorch's form and in safetensors), and `script` (the text that is said, and the role in a prompt). `--count` is shared. The
program prints how many of each were refused and how many ran, and how much memory it took. What fails is shown with its seed;
`--count 1 --seed S --kind KIND` repeats it. It ends with 1 then.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import random
import resource
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.errors import InputError
from msh_mlx.model.engines import ENGINES
from msh_mlx.system.signals import Signals
from msh_mlx.system.words import human_size

ROOT = Path(__file__).parents[1]
GOLDEN, DEMO = ROOT / "tests" / "golden", ROOT / "assets" / "demo"
_PATIENCE = 60  # seconds that a case may take before it counts as hanging

# Values in JSON that some reader may not expect.
ODD = [
    "0", "1", "-1", "2", "3", "7", "64", "255", "65536", "16777216", "16777217", "4294967296", "9223372036854775808",
    "1e3", "1e308", "1e999", "0.5", "1e-300", "null", "true", "false", '"4"', '""', "[]", "{}", "NaN", "-Infinity",
    '"rope_concat"', "[" * 2000, "9" * 5000, "9" * 400, '"\\u0000\\n\\u202e"', '"\\ud800"', '"' + "x" * 3000 + '"',
    "[0, 0]", "[1e400]", '{"a": 1}',
]  # fmt: skip


class Fuzzer:
    """Makes damaged inputs, and reads them. A method for each kind returns whether the input of a seed ran.

    Files are written into `folder`. `engine` runs what is read.
    """

    def __init__(self, folder: Path, engine: str = "native") -> None:
        self._folder = folder
        self._engine = engine
        self._configs: list[tuple[Path, dict[str, Any]]] = []
        for model in sorted([*GOLDEN.glob("*-small/lm*.safetensors"), *DEMO.glob("*/model*.safetensors")]):
            self._configs.append((model, json.loads(model.with_name("config.json").read_text())))
        self._parts: dict[str, Any] = {}

    def configuration(self, rng: random.Random) -> bool:
        """Damage a configuration. If it is read, write and read it again, and open and run the model that it is beside."""
        from msh_mlx.model.config import LmConfig
        from msh_mlx.weights.checkpoint import describe, open_checkpoint
        from msh_mlx.weights.load import load
        from msh_mlx.weights.safetensors import read_header

        model, values = rng.choice(self._configs)
        text = json.dumps(values)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            text = _damaged_json(rng, text, values)
        path = self._folder / "config.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        config = LmConfig.from_file(path, lora=True)
        again = LmConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again.to_dict() == config.to_dict(), "written and read, it is another configuration"
        if rng.random() < 0.2:
            model = rng.choice(self._configs)[0]
        assert describe(read_header(model)).startswith("a")
        checkpoint = open_checkpoint(model, config)
        if rng.random() < 0.2:
            run(load(checkpoint, self._engine), rng)
        return True

    def model(self, rng: random.Random) -> bool:
        """Damage the header of a model's file: names, types, shapes and places of tensors."""
        from msh_mlx.weights.checkpoint import describe, open_checkpoint
        from msh_mlx.weights.load import load
        from msh_mlx.weights.safetensors import read_header

        source, values = rng.choice([pair for pair in self._configs if pair[0].stat().st_size < 4e6])
        data = source.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries = {name: entry for name, entry in json.loads(data[8:end]).items() if entry and name != "__metadata__"}
        for _ in range(rng.choice([1, 1, 2, 8])):
            name = rng.choice(list(entries))
            kind = rng.randrange(5)
            if kind == 0:
                del entries[name]
            elif kind == 1:
                entries[_renamed(rng, name, list(entries))] = entries.pop(name)
            elif kind == 2:
                entries[name] = {
                    **entries[rng.choice(list(entries))],
                    **rng.choice([{}, {"dtype": "F16"}, {"dtype": "U32"}]),
                }
            elif kind == 3:
                shape = entries[name]["shape"]
                entries[name]["shape"] = rng.choice(
                    [shape[::-1], [*shape, 1], [math.prod(shape)], shape[1:], [1, *shape]]
                )
            else:
                entries[name]["dtype"] = rng.choice(["F32", "BF16", "F16", "U32", "I32", "F64", "F8_E4M3", "F4"])
        raw = json.dumps(entries)
        if rng.random() < 0.2:
            raw = _damaged_bytes(rng, raw.encode()).decode("latin-1")
        path = self._folder / "lm.safetensors"
        path.write_bytes(len(raw.encode()).to_bytes(8, "little") + raw.encode() + data[end:])
        describe(read_header(path))
        checkpoint = open_checkpoint(path, values)
        if rng.random() < 0.5:
            run(load(checkpoint, self._engine), rng)
        return True

    def pt(self, rng: random.Random) -> bool:
        """Damage a voice in PyTorch's form: the archive, an entry, or the pickle."""
        path = self._folder / "voice.pt"
        source = GOLDEN / "personaplex-small" / "voice.pt"
        with zipfile.ZipFile(source) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
        kind = rng.randrange(4)
        if kind == 0:
            path.write_bytes(_damaged_bytes(rng, source.read_bytes()))
            return self._voice(path)
        names = [name for name, _ in entries]
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = 0 if kind < 3 and rng.random() < 0.8 else rng.randrange(len(entries))
            name, data = entries[at]
            if kind == 1:
                entries[at] = name, _damaged_pickle(rng, data)
            elif kind == 2:
                entries[at] = name, _damaged_bytes(rng, data)
            elif rng.random() < 0.5:
                entries[at] = rng.choice([*names, "x/data.pkl", "a/b/data.pkl", "voice/data/2", "../x"]), data
            elif len(entries) > 1:
                del entries[at]
        packing = rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(path, "w", packing) as archive:
            for name, data in dict(entries).items():
                archive.writestr(name, data)
        return self._voice(path)

    def voice(self, rng: random.Random) -> bool:
        """Damage a voice in safetensors: PersonaPlex's, as states or as sound, or that of a text-to-speech model."""
        import numpy as np

        from msh_mlx.weights.voice import read_speaker, write_sound

        speakers = sorted((DEMO / "tts" / "voices").glob("*.safetensors"))
        sound = self._folder / "sound.safetensors"
        if not sound.exists():
            with sound.open("wb") as file:
                write_sound(file, np.sin(np.arange(2000, dtype=np.float32)))
        source = rng.choice([GOLDEN / "personaplex-small" / "voice.safetensors", sound, *speakers])
        data = source.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header, numbers = data[8:end].decode(), data[end:]
        kind = rng.randrange(3)
        if kind == 0:
            values = json.loads(header)
            header = _damaged_json(rng, header, values[rng.choice(list(values))])
        elif kind == 1:
            numbers = _damaged_bytes(rng, numbers)
        else:
            header = _damaged_bytes(rng, header.encode()).decode("latin-1")
        raw = header.encode("utf-8", "surrogatepass")
        path = self._folder / "voice.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + numbers)
        if source not in speakers:
            return self._voice(path)
        voice = read_speaker(path)
        speaker = self._speaker([voice])
        if rng.random() < 0.05:
            _take(speaker.say("three"), 3)
        return True

    def script(self, rng: random.Random) -> bool:
        """Say some text, or take it as a role."""
        from msh_mlx.conversation.personas import Persona, check_persona
        from msh_mlx.conversation.spoken import cut, dialogue

        text = _text(rng)
        if rng.random() < 0.3:
            parts = self._persona()
            check_persona(Persona(None, text), parts["tokenizer"], parts["lm"].config)
            return True
        size = rng.choice([1, 7, 1000])
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        for _ in cut(dialogue(pieces) if rng.random() < 0.5 else pieces):
            pass
        if rng.random() < 0.02:
            _take(self._speaker([]).say(dialogue(pieces)), 6)
        return True

    def _voice(self, path: Path) -> bool:
        """Read a voice of PersonaPlex, check it against a model, and make a prompt of it."""
        import numpy as np

        from msh_mlx.model.families import personaplex
        from msh_mlx.weights.voice import read_voice

        voice = read_voice(path)
        if isinstance(voice, personaplex.Voice):
            lm = self._golden()
            personaplex.check_voice(voice, lm.config)
            codes = np.arange(lm.config.dep_q)
            prompt = personaplex.prompt(lm.config.streams, 3, codes, codes, voice=voice, text=[5, 6])
            assert prompt.columns.shape[1] == 1 + lm.config.n_q
        return True

    def _golden(self) -> Any:
        from msh_mlx.weights.load import load_lm

        if "golden" not in self._parts:
            folder = GOLDEN / "personaplex-small"
            self._parts["golden"] = load_lm(folder / "lm.safetensors", folder / "config.json", engine=self._engine)
        return self._parts["golden"]

    def _persona(self) -> dict[str, Any]:
        return self._loaded("persona")

    def _loaded(self, use: str) -> dict[str, Any]:
        from msh_mlx.conversation.codec import load_mimi
        from msh_mlx.conversation.text import load_tokenizer
        from msh_mlx.library.files import find_demo
        from msh_mlx.weights.load import load_lm

        if use not in self._parts:
            files = find_demo(use)
            lm = load_lm(files.model, files.config, engine=self._engine)
            self._parts[use] = {"lm": lm, "mimi": load_mimi(files.mimi), "tokenizer": load_tokenizer(files.tokenizer)}
        return self._parts[use]  # type: ignore[no-any-return]

    def _speaker(self, voices: list[Any]) -> Any:
        from msh_mlx.conversation.speaker import Speaker

        return Speaker(**self._loaded("speech"), voices=voices, seed=0)


KINDS = ("configuration", "model", "pt", "voice", "script")


def run(lm: Any, rng: random.Random) -> None:
    """Run some positions of a model of any family."""
    import numpy as np

    from msh_mlx.model.families import family_of, hibiki, personaplex, tts
    from msh_mlx.model.generate import LmGen

    config = lm.config
    options: dict[str, Any] = {}
    name = family_of(config).name
    if name == "tts":
        machine = tts.WordMachine.of(config)
        machine.entries.extend(tts.entries([[min(4, config.text_card - 1)]] * 3))
        gen = LmGen(lm, seed=0, steering=tts.steering(lm), script=tts.SpeechScript.of(config, machine))
        _take(iter(gen.advance, None), 12)
        return
    if name == "hibiki":
        options["steering"] = hibiki.steering(lm, rng.choice([1.0, 3.0]))
        options["text_sampler"], options["audio_sampler"] = hibiki.samplers(config)
    if name == "personaplex":
        silence, sine = personaplex.prompt_codes(config)
        options["prompt"] = personaplex.prompt(config.streams, config.existing_text_padding_id, silence, sine)
    gen = LmGen(lm, seed=0, **options)
    for t in range(3):
        gen.step(np.arange(config.user_q) * (t + 1) % config.card)


def _take(items: Any, count: int) -> None:
    for _ in range(count):
        if next(items, None) is None:
            return


# ---- damage ----------------------------------------------------------------------------------------------------------------


def _damaged_json(rng: random.Random, text: str, values: dict[str, Any]) -> str:
    """Change a key or a value, at any depth, or some letters."""
    kind = rng.randrange(6)
    leaves = _leaves(values)
    if kind < 4 and leaves:
        key, value = rng.choice(leaves)
        written = f"{json.dumps(key)}: {json.dumps(value)}"
        new_key = (
            json.dumps(key)
            if kind
            else rng.choice(['"x"', '""', json.dumps(rng.choice(leaves)[0]), '"dep_q"', '"lora"'])
        )
        other = json.dumps(rng.choice(leaves)[1])
        new = f"{new_key}: {rng.choice([*ODD, other]) if kind != 1 else _near(rng, value)}"
        return text.replace(written, rng.choice([new, new, new, f"{new}, {written}"]), 1)
    if kind == 4 and leaves:
        key, value = rng.choice(leaves)
        return text.replace(f"{json.dumps(key)}: {json.dumps(value)}, ", "", 1)
    return _damaged_bytes(rng, text.encode("utf-8", "surrogatepass")).decode("latin-1")


def _renamed(rng: random.Random, name: str, names: list[str]) -> str:
    """Give a tensor another number, or a name of another, or none."""
    numbers = [i for i, part in enumerate(name.split(".")) if part.isdigit()]
    parts = name.split(".")
    if numbers and rng.random() < 0.6:
        parts[rng.choice(numbers)] = rng.choice(["0", "1", "2", "3", "7", "99", "1" * 5000, "٣", "-1", "01"])
        return ".".join(parts)
    return rng.choice(
        [*names, "", name + "x", name.replace("weight", "scales"), "text_emb.out1.weight", "quantizer.x", "\ud800"]
    )


def _leaves(values: Any) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items() if isinstance(values, dict) else ():
        found.append((key, value))
        found += _leaves(value)
    return found


def _near(rng: random.Random, value: Any) -> str:
    """Change a value a little, so that it is of the same type."""
    if isinstance(value, bool):
        return json.dumps(not value)
    if isinstance(value, int | float):
        return json.dumps(rng.choice([value + 1, value - 1, 2 * value, value // 2, -value, value + 0.5]))
    if isinstance(value, list) and value:
        items = list(value)
        at = rng.randrange(len(items))
        change = rng.randrange(3)
        if change == 0:
            del items[at]
        elif change == 1:
            items.append(items[at])
        else:
            items[at] = rng.choice([0, -1, 1, 999, 1000, 1 << 40, None, "x", items[rng.randrange(len(items))]])
        return json.dumps(items)
    return json.dumps(rng.choice([f"{value}x", None, 1]))


def _damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        kind = rng.randrange(8)
        at = rng.randrange(len(changed)) if changed else 0
        if kind == 0:
            del changed[at : at + rng.choice([1, 4, len(changed)])]
        elif kind == 1:
            changed[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
        elif kind == 2 and len(changed) > 8:
            size = rng.choice([2, 4, 8])
            changed[at : at + size] = rng.choice([0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1)]).to_bytes(
                size, "little"
            )
        elif changed:
            changed[at] = rng.choice([rng.randrange(256), 0, 255, changed[at] ^ 1, changed[at] ^ 128])
    return bytes(changed)


# Operations of pickles, with arguments that are too large, too small, or of something else.
_OPERATIONS = [
    b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x96" + struct.pack("<Q", 1 << 40), b"X\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f", b"\x95" + struct.pack("<Q", 1 << 40), b"cos\nsystem\n", b"cbuiltins\neval\n",
    b"ctorch\nDoubleStorage\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"R", b"b",
    b"\x81", b"Q", b"(", b")", b"t", b"}", b"]", b"s", b"u", b"0", b"2", b".", b"\x85", b"\x86", b"\x87", b"K\x00",
    b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + struct.pack("<q", 1 << 62), b"q\x00h\x00\x86" * 40, b"N",
    b"\x88", b"G" + struct.pack(">d", 0.5), b"X\x01\x00\x00\x000", b"X\x05\x00\x00\x00cache", b"h\x00", b"h\x0d",
    b"\x80\x05", b"\x93", b"i",
]  # fmt: skip


def _damaged_pickle(rng: random.Random, data: bytes) -> bytes:
    """Put an operation between others, in place of one, or leave one out."""
    import pickletools

    try:
        places = [place or 0 for _, _, place in pickletools.genops(data)]
    except ValueError:
        return _damaged_bytes(rng, data)
    at = rng.randrange(len(places))
    end = places[at + 1] if at + 1 < len(places) else len(data)
    new = rng.choice([b"", rng.choice(_OPERATIONS), rng.choice(_OPERATIONS) + rng.choice(_OPERATIONS)])
    return data[: places[at]] + new + data[rng.choice([places[at], end]) :]


_WORDS = [
    "three", "one", "four", "A:", "B:", "\n", "\n\n", "  ", "\t", "'", "’", "(", ")", ":", ".", ",", "-", "<", ">",
    "</", "<break", "/>", '<break time="1.5s"/>', '<break time="0s"/>', "<break time='99s'/>", '<break time="1e9s"/>',
    "<break/>", "<break time=1ms>", "<system>", "\0", "\x1b[31m", "\u202e", "\ud800", "\U0001f600", "é", "e\u0301",
    "日本語", "\u2028", "\ufeff", "x" * 999, "x" * 1001, "9" * 50, "<break time=\"" + "9" * 400 + "s\"/>", "▁", "<unk>",
    "<s>", "\r", "&lt;", "seven",
]  # fmt: skip


def _text(rng: random.Random) -> str:
    parts = rng.choices(_WORDS, k=rng.choice([0, 1, 3, 10, 40]))
    if rng.random() < 0.1:
        parts.append(rng.choice(_WORDS) * rng.choice([100, 3000]))
    return rng.choice(["", " "]).join(parts)


# ---- trying ----------------------------------------------------------------------------------------------------------------


def attempt(case: Callable[[random.Random], bool], seed: int) -> bool:
    """Try a case; return whether it ran.

    Raises
    ------
    AssertionError
        It was refused, but not in one sentence.
    Exception
        Anything else that went wrong.
    """
    try:
        return case(random.Random(seed))
    except InputError as error:
        message = str(error)
        assert message.endswith("."), message
        assert message.isprintable(), repr(message)
        assert len(message) < 1500, message[:200]
        return False


def try_all(args: argparse.Namespace, signals: Signals) -> int:
    """Try seeds of all kinds; print what came of them."""
    import warnings

    warnings.simplefilter("ignore")  # of entries that are there twice
    kinds, wrong = (args.kind,) if args.kind else KINDS, 0
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), args.engine)
        for k, kind in enumerate(kinds):
            count = args.count // len(kinds) + (k < args.count % len(kinds))
            ran = 0
            for seed in range(args.seed, args.seed + count):
                signals.check()
                faulthandler.dump_traceback_later(_PATIENCE, exit=True)
                try:
                    ran += attempt(getattr(fuzzer, kind), seed)
                except Exception as error:
                    wrong += 1
                    print(f"{kind} {seed}: {type(error).__name__}: {error}"[:300], flush=True)
                finally:
                    faulthandler.cancel_dump_traceback_later()
            print(f"{kind}: {count} tried, {count - ran} refused, {ran} ran", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{wrong} went wrong; at most {human_size(peak)} of memory were taken")
    return 1 if wrong else 0


def main() -> int:
    """Run the script and return its exit code."""
    parser = Parser(prog="fuzz_family.py", description="Damage configurations, voices and scripts, and try them.")
    parser.add_argument("--count", type=whole(1), default=1000, help="try this many in all (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="begin with this seed (default: %(default)s)")
    parser.add_argument("--kind", choices=KINDS, help="try only these")
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="run models with this engine (default: %(default)s)"
    )
    return guard(lambda signals: try_all(parser.parse_args(), signals))


if __name__ == "__main__":
    sys.exit(main())
