"""What becomes of Moshi's echo: how much is taken away, how fast, what of the user's voice is left, and what the model does.

Three parts: "signals" plays words in each scene and measures; "loop" lets the demo model hear what it says through the scene,
60 s after one question; "talk" lets a user talk with it, in turns and into its words, and counts the
words that come back. Each with the canceller ("ours") and without ("none").
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from echo_scenes import FRAME, RATE, SCENES, Air, Pcm, Scene, Voices, active_level, plain
from mimi import EchoCanceller

from msh_mlx.files import find_demo
from msh_mlx.options import Parser, guard, load_session
from msh_mlx.session import Session

LEAD = 2  # frames between what the model heard and the sound of its answer in the air
SETTLED = 8.0  # seconds after which a canceller has settled, at the latest
PARTS = ("signals", "loop", "talk")

Canceller = Callable[[Pcm, Pcm], Pcm]


def none(heard: Pcm, _: Pcm) -> Pcm:
    return heard


def ours() -> Canceller:
    return EchoCanceller().process


CANCELLERS: dict[str, Callable[[], Canceller]] = {"none": lambda: none, "ours": ours}


def frames(pcm: Pcm) -> list[Pcm]:
    return [pcm[i : i + FRAME] for i in range(0, len(pcm) - FRAME + 1, FRAME)]


def words_in_a_row(voice: dict[str, Pcm], seed: int, seconds: float) -> Pcm:
    """Return words of a voice, `[24000 * seconds]`, with pauses of 0.1 to 0.5 s."""
    random = np.random.default_rng(seed)
    parts = [np.zeros(RATE // 2, np.float32)]
    while sum(map(len, parts)) < seconds * RATE:
        parts += [voice[str(random.choice(list(voice)))], np.zeros(int(random.uniform(0.1, 0.5) * RATE), np.float32)]
    return np.concatenate(parts)[: int(seconds * RATE)]


# ---- signals -------------------------------------------------------------------------------------------------------------


def power(pcm: Pcm) -> float:
    return float(np.mean(np.square(pcm, dtype=np.float64))) + 1e-14


def decibels(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


def likeness(wanted: Pcm, got: Pcm) -> float:
    """Return the scale-invariant ratio of signal to distortion, dB, at the best of the shifts up to 10 ms."""
    best = -np.inf
    for shift in range(0, RATE // 100, 8):
        a, b = wanted[: len(wanted) - shift].astype(np.float64), got[shift:].astype(np.float64)
        share = np.dot(a, b) / np.dot(a, a)
        best = max(best, decibels(np.sum((share * a) ** 2) / (np.sum((b - share * a) ** 2) + 1e-14)))
    return best


def signals(scene: Scene, name: str, voices: Voices) -> dict[str, float]:
    """Measure a canceller in a scene.

    "erle" once settled, the noise included, dB; "settle", seconds until nothing louder than that follows; "after", dB above the
    noise after two seconds; "voice", SI-SDR while both speak, dB; "back", as "erle", two seconds after a change; "cost",
    processor seconds per second.
    """
    played = frames(words_in_a_row(voices.moshi, scene.seed, 16))
    voice = words_in_a_row(voices.users[1], scene.seed + 1, 16)
    result: dict[str, float] = {}
    for speaking in (False, True):
        air, canceller, seconds = Air(scene), CANCELLERS[name](), 0.0
        heard, clean = [], []
        for sound, said in zip(played, frames(voice if speaking else 0 * voice), strict=True):
            mixed, _ = air.hear(sound, said)
            begin = process_time()
            clean.append(canceller(mixed, sound))
            seconds += process_time() - begin
            heard.append(mixed)
        before, after = np.concatenate(heard), np.concatenate(clean)
        late = slice(int(SETTLED * RATE), None)
        if speaking:
            result["voice"] = likeness(voice[late][: len(after[late])], after[late])
        else:
            late = slice(int((SETTLED + 2) * RATE), None)
            result["erle"] = decibels(power(before[late]) / power(after[late]))
            noise = 10 ** (scene.noise / 10)
            levels = [power(frame) for frame in clean]
            loud = [i for i, level in enumerate(levels) if level > 4 * max(noise, power(after[late]))]
            early = [i for i in loud if i * 0.08 < SETTLED]
            result["settle"] = (early[-1] + 1) * 0.08 - 0.5 - scene.loop if early else 0.0
            span = slice(int((2.5 + scene.loop) * RATE), int((4.5 + scene.loop) * RATE))
            result["after"] = decibels(power(after[span]) / noise)
            for when in (scene.jump, scene.volume):
                if when is not None:
                    back = slice(int((when + 2) * RATE), int((when + 6) * RATE))
                    result["back"] = decibels(power(before[back]) / power(after[back]))
        result["cost"] = seconds / (len(played) * 0.08)
    return result


# ---- the model in the loop -----------------------------------------------------------------------------------------------


@dataclass
class Talk:
    """What was said: times in seconds, and words."""

    words: list[tuple[float, str]]

    def text(self) -> list[str]:
        return [word for _, word in self.words]


def converse(session: Session, scene: Scene | None, name: str, voice: Pcm) -> Talk:
    """Let the model hear a voice and itself, and return what it says."""
    session.reset()
    air, canceller = Air(scene) if scene else None, CANCELLERS[name]()
    silence = np.zeros(FRAME, np.float32)
    ahead, words = [silence] * LEAD, []
    for index, said in enumerate(frames(voice)):
        played = ahead.pop(0)
        heard = canceller(air.hear(played, said)[0], played) if air else said
        frame = session.push(heard)
        ahead.append(frame.pcm.clip(-1, 1))
        words += [(index * 0.08, word) for word in frame.text.split()]
    return Talk(words)


def question(voice: dict[str, Pcm], words: Sequence[str], seconds: float) -> Pcm:
    """Return spoken words, then silence until the end."""
    parts = [np.zeros(RATE // 2, np.float32)]
    for word in words:
        parts += [voice[word], np.zeros(RATE // 5, np.float32)]
    pcm = np.concatenate(parts)
    return np.concatenate([pcm, np.zeros(max(0, int(seconds * RATE) - len(pcm)), np.float32)])[: int(seconds * RATE)]


def kept(wanted: Sequence[str], got: Sequence[str]) -> int:
    """Return how many of the words wanted came, in their order."""
    row = [0] * (len(got) + 1)
    for word in wanted:
        before = row[:]
        for j, other in enumerate(got):
            row[j + 1] = before[j] + 1 if word == other else max(before[j + 1], row[j])
    return row[-1]


def loop(session: Session, voices: Voices, scenes: Sequence[Scene], seconds: float) -> dict[str, list[int]]:
    """Return, for each canceller, the words beyond those without an echo, by scene."""
    further: dict[str, list[int]] = {name: [] for name in CANCELLERS}
    for scene in scenes:
        voice = question(voices.users[scene.seed % len(voices.users)], ["three", "nine"], seconds)
        base = converse(session, None, "none", voice).text()
        for name in CANCELLERS:
            said = converse(session, scene, name, voice).text()
            further[name].append(max(0, len(said) - len(base)))
            print(
                f"{scene.name:10} {scene.room:.2f} s, loop {scene.loop:.2f} s, {name}: {' '.join(said)} ({' '.join(base)})"
            )
    return further


def dialogue(voices: Voices, seed: int, pause: float) -> tuple[Pcm, list[str]]:
    """Return a user who asks three times, one to three digits, with so many seconds between, and what it says."""
    random = np.random.default_rng(seed)
    voice = voices.users[seed % len(voices.users)]
    parts, said = [], []
    for _ in range(3):
        words = random.choice(list(voice), random.integers(1, 4))
        parts.append(question(voice, words, 0.5 + 0.75 * len(words) + pause))
        said += words.tolist()
    return np.concatenate(parts), said


def talk(session: Session, voices: Voices, count: int, pause: float) -> dict[str, float]:
    """Return, for each canceller, how many of the user's words come back with an echo, as a share of those without one.

    Numbers are compared, not dialogues: where words lie in its frames decides which of them the small model mishears.
    """
    without, came = 0, dict.fromkeys(CANCELLERS, 0)
    for seed, scene in enumerate(plain(count)):
        voice, said = dialogue(voices, seed, pause)
        without += kept(said, converse(session, None, "none", voice).text())
        for name in CANCELLERS:
            came[name] += kept(said, converse(session, scene, name, voice).text())
    return {name: number / max(1, without) for name, number in came.items()}


# ---- all together --------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    files = find_demo()
    voices = Voices(files.mimi.parent)
    figures: dict[str, Any] = {}
    if "signals" in args.parts:
        print(
            f"An echo of {active_level(voices.moshi['three']):.0f} dB is as loud as the user; ERLE includes the noise."
        )
        for scene in SCENES[:: 4 if args.quick else 1]:
            for name in CANCELLERS:
                result = figures[f"{scene.name}, {name}"] = signals(scene, name, voices)
                print(f"{scene.name:11} {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in result.items()))
    if {"loop", "talk"} & set(args.parts):
        session = load_session(files, None, voice={"temperature": 0.0}, text={"temperature": 0.0}, seed=0)
        session.warm_up()
    if "loop" in args.parts:
        further = figures["loop"] = loop(session, voices, plain(args.count or 20), 20 if args.quick else 60)
        for name, numbers in further.items():
            quiet = sum(number == 0 for number in numbers)
            print(f"{name}: no further word in {quiet} of {len(numbers)}; {median(numbers):.0f} in the median")
    if "talk" in args.parts:
        for label, pause in (("in turns", 3.5), ("into its words", 1.3)):
            shares = figures[label] = talk(session, voices, args.count or 100, pause)
            print(f"{label}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1))
    return 0


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS), help="default: all")
    parser.add_argument("--count", type=int, help="scenes (default: 20) and dialogues (default: 100)")
    parser.add_argument("--quick", action="store_true", help="fewer scenes, shorter")
    parser.add_argument("--json", metavar="FILE", help="keep the figures there")
    args = parser.parse_args()
    return guard(lambda _: run(args), debug=True)


if __name__ == "__main__":
    sys.exit(main())
