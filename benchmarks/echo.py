"""Measure echo cancellers: how much echo they remove, how fast, how much of the user's voice stays, and what the model does.

There are three parts. "scenes" plays words in each scene and measures, and lets the demo model talk there. "loop" lets the
model hear itself through plain rooms, for 60 s after one question. "talk" lets a user talk with it there, in turns and into
its words, and counts the words that come back. Each runs without a canceller ("none"), with ours ("ours"), with WebRTC's from
before AEC3 ("webrtc"; "webrtc told" is told the scene's delay, which a real system does not know so well) and SpeexDSP's
("speex"), if they are installed, and with AEC3 from the crates "sonora" and "aec3".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from echo_peers import peers
from echo_scenes import NO_ECHO, SCENES, Air, Scene, Voices, plain
from msh_native import EchoCanceller

from msh_mlx.cli.options import Parser
from msh_mlx.cli.program import guard
from msh_mlx.conversation.load import load_session
from msh_mlx.conversation.session import Session
from msh_mlx.errors import InputError
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE, Pcm
from msh_mlx.library.files import find_demo

LEAD = 2  # frames between the sound that the model heard and its answer in the air
SECONDS = 16  # of words in a scene
SETTLED = 5.0  # seconds after which a canceller has settled, at the latest
IN_TURNS, INTO = 3.5, 1.3  # seconds between a user's questions: Moshi ends in between, or is interrupted
KEYS = ("erle", "settle", "after", "back", "voice", "cost", "further", "kept")
PARTS = ("scenes", "loop", "talk")

Canceller = Callable[[Pcm, Pcm], Pcm]


def as_heard(heard: Pcm, played: Pcm) -> Pcm:
    return heard


# Functions that make a canceller for a scene, by name.
CANCELLERS: dict[str, Callable[[Scene], Canceller]] = {
    "none": lambda _: as_heard,
    "ours": lambda _: EchoCanceller().process,
}


def add_peers() -> None:
    for name, maker in peers().items():
        CANCELLERS[name] = lambda _, maker=maker: maker(0.0)
        if name == "webrtc":
            CANCELLERS["webrtc told"] = lambda scene, maker=maker: maker(scene.loop)


def frames(pcm: Pcm) -> list[Pcm]:
    return [pcm[i : i + FRAME_SIZE] for i in range(0, len(pcm) - FRAME_SIZE + 1, FRAME_SIZE)]


def words_in_a_row(voice: dict[str, Pcm], seed: int, seconds: float) -> Pcm:
    """Return words of a voice, `[24000 * seconds]`, with pauses of 0.1 to 0.5 s."""
    random = np.random.default_rng(seed)
    parts = [np.zeros(SAMPLE_RATE // 2, np.float32)]
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        parts += [
            voice[str(random.choice(list(voice)))],
            np.zeros(int(random.uniform(0.1, 0.5) * SAMPLE_RATE), np.float32),
        ]
    return np.concatenate(parts)[: int(seconds * SAMPLE_RATE)]


# ---- signals -------------------------------------------------------------------------------------------------------------


def power(pcm: Pcm) -> float:
    return float(np.mean(np.square(pcm, dtype=np.float64))) + 1e-14


def decibels(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


def likeness(wanted: Pcm, got: Pcm) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB, at the best shift of up to 25 ms."""
    size = 1 << (2 * len(wanted)).bit_length()
    alike = np.fft.irfft(np.fft.rfft(got, size) * np.conj(np.fft.rfft(wanted, size)), size)[: SAMPLE_RATE // 40]
    shift = int(np.argmax(alike))
    a, b = wanted[: len(wanted) - shift].astype(np.float64), got[shift:].astype(np.float64)
    share = np.dot(a, b) / np.dot(a, a)
    return decibels(np.sum((share * a) ** 2) / (np.sum((b - share * a) ** 2) + 1e-14))


def pass_through(scene: Scene, name: str, played: Pcm, voice: Pcm) -> tuple[Pcm, Pcm, Pcm, float]:
    """Return the sound in a scene, the same without an echo, the canceller's output, and the canceller's seconds."""
    air, canceller, seconds = Air(scene), CANCELLERS[name](scene), 0.0
    rows = []
    for sound, said in zip(frames(played), frames(voice), strict=True):
        heard, near = air.hear(sound, said)
        begin = process_time()
        clean = canceller(heard, sound)
        seconds += process_time() - begin
        rows.append((heard, near, clean))
    heard, near, clean = (np.concatenate(row) for row in zip(*rows, strict=True))
    return heard, near, clean, seconds


def left(clean: Pcm, near: Pcm) -> Pcm:
    """Return the power that a canceller left, `[frames]`. Noise that it removed does not count."""
    return np.array([max(power(a), power(b)) for a, b in zip(frames(clean), frames(near), strict=True)])


def signals(scene: Scene, name: str, voices: Voices) -> dict[str, float]:
    """Measure a canceller in a scene.

    "erle" once settled, dB: what was heard against what is left, the noise in both; "settle", seconds after the first echo
    until nothing 6 dB louder than that follows; "after", dB above the noise from two seconds after the first echo to a change
    or the end; "back", as "erle", two to six seconds after a change; "voice", SI-SDR while both speak, dB; "cost", processor
    seconds per second.
    """
    said = words_in_a_row(voices.moshi, scene.seed, SECONDS)
    voice = words_in_a_row(voices.users[1], scene.seed + 1, SECONDS)
    heard, near, clean, seconds = pass_through(scene, name, said, 0 * voice)
    before, after, noise = left(heard, near), left(clean, near), left(near, near)

    def span(begin: float, end: float) -> slice:
        return slice(round(begin / FRAME_SECONDS), round(end / FRAME_SECONDS))

    def erle(span: slice) -> float:
        return decibels(np.mean(before[span]) / np.mean(after[span]))

    change = scene.jump or scene.volume
    late, first = span(SETTLED, change or SECONDS), 0.5 + scene.loop
    loud = np.flatnonzero(after[: late.start] > 4 * np.maximum(noise[: late.start], np.mean(after[late])))
    result = {
        "erle": erle(late),
        "settle": max(0.0, (loud[-1] + 1) * FRAME_SECONDS - first) if len(loud) else 0.0,
        "after": decibels(
            np.mean(after[span(first + 2, late.stop * FRAME_SECONDS)]) / np.mean(noise[span(first + 2, SECONDS)])
        ),
        "cost": seconds / SECONDS,
    }
    if change:
        result["back"] = erle(span(change + 2, change + 6))
    heard, near, clean, _ = pass_through(scene, name, said, voice)
    late = slice(int(SETTLED * SAMPLE_RATE), None)
    result["voice"] = likeness(near[late], clean[late])
    return result


# ---- the model in the loop -----------------------------------------------------------------------------------------------


def converse(session: Session, scene: Scene, canceller: Canceller, voice: Pcm) -> list[str]:
    """Let the model hear a voice and itself. Return the words that it says."""
    session.reset()
    air = Air(scene)
    ahead, words = [np.zeros(FRAME_SIZE, np.float32)] * LEAD, []
    for said in frames(voice):
        played = ahead.pop(0)
        frame = session.push(canceller(air.hear(played, said)[0], played))
        ahead.append(frame.pcm.clip(-1, 1))
        words += frame.text.split()
    return words


def without_echo(session: Session, scene: Scene, voice: Pcm) -> list[str]:
    return converse(session, replace(scene, level=NO_ECHO), as_heard, voice)


def question(voice: dict[str, Pcm], words: Sequence[str], seconds: float) -> Pcm:
    """Return spoken words, then silence until the end."""
    parts = [np.zeros(SAMPLE_RATE // 2, np.float32)]
    for word in words:
        parts += [voice[word], np.zeros(SAMPLE_RATE // 5, np.float32)]
    pcm, size = np.concatenate(parts), int(seconds * SAMPLE_RATE)
    return np.pad(pcm, (0, max(0, size - len(pcm))))[:size]


def kept(wanted: Sequence[str], got: Sequence[str]) -> int:
    """Return how many of the wanted words came, in order."""
    row = [0] * (len(got) + 1)
    for word in wanted:
        before = row[:]
        for j, other in enumerate(got):
            row[j + 1] = before[j] + 1 if word == other else max(before[j + 1], row[j])
    return row[-1]


def loop(session: Session, voices: Voices, scene: Scene, seconds: float) -> dict[str, int]:
    """Return, by canceller, how many words the model says after one question beyond those without an echo."""
    voice = question(voices.users[scene.seed % len(voices.users)], ["three", "nine"], seconds)
    base, further = without_echo(session, scene, voice), {}
    print(f"{scene.name}, room {scene.room:.2f} s, loop {scene.loop:.2f} s, without echo: {' '.join(base)}")
    for name in CANCELLERS:
        words = converse(session, scene, CANCELLERS[name](scene), voice)
        further[name] = max(0, len(words) - len(base))
        print(f"    {name}: {' '.join(words)}")
    return further


def dialogue(voices: Voices, seed: int, pause: float) -> tuple[Pcm, list[str]]:
    """Return a user's voice that asks three times, one to three digits, with pauses of `pause` seconds, and its words."""
    random = np.random.default_rng(seed)
    voice = voices.users[seed % len(voices.users)]
    parts, said = [], []
    for _ in range(3):
        words = random.choice(list(voice), random.integers(1, 4))
        parts.append(question(voice, words, 0.5 + 0.75 * len(words) + pause))
        said += words.tolist()
    return np.concatenate(parts), said


def talk(session: Session, voices: Voices, scenes: Sequence[Scene], pause: float) -> dict[str, float]:
    """Return, by canceller, how many of the user's words come back with an echo, as a share of those without an echo.

    Only counts are compared, not dialogues: the small model mishears other words if they lie elsewhere in its frames.
    """
    without, came = 0, dict.fromkeys(CANCELLERS, 0)
    for seed, scene in enumerate(scenes):
        voice, said = dialogue(voices, seed, pause)
        without += kept(said, without_echo(session, scene, voice))
        for name in CANCELLERS:
            came[name] += kept(said, converse(session, scene, CANCELLERS[name](scene), voice))
    return {name: number / max(1, without) for name, number in came.items()}


# ---- all together --------------------------------------------------------------------------------------------------------


def scenes(session: Session, voices: Voices, quick: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Measure all cancellers in all scenes: by scene, by canceller. "further" words in 20 s of a loop, "kept" in dialogues."""
    rows = {}
    for scene in SCENES[:: 9 if quick else 1]:
        further = loop(session, voices, scene, 20)
        share = talk(session, voices, [scene] * (1 if quick else 3), INTO)
        rows[scene.name] = {
            name: {**signals(scene, name, voices), "further": further[name], "kept": share[name]} for name in CANCELLERS
        }
    print(f"\n{'':12} {'':12}" + "".join(f"{key:>9}" for key in KEYS))
    for title, row in rows.items():
        for name, result in row.items():
            cells = (f"{result[key]:9.3g}" if key in result else f"{'':9}" for key in KEYS)
            print(f"{title:12} {name:12}" + "".join(cells))
    for name in CANCELLERS:
        cells = (
            f"{median([row[name][key] for row in rows.values() if key in row[name]] or [nan]):9.3g}" for key in KEYS
        )
        print(f"{'median':12} {name:12}" + "".join(cells))
    return rows


def run(args: argparse.Namespace) -> int:
    add_peers()
    parts, only = args.parts or PARTS, args.only or CANCELLERS
    for name, known in [*((part, PARTS) for part in parts), *((name, CANCELLERS) for name in only)]:
        if name not in known:
            raise InputError(f"There is no {name!r}; there are {', '.join(known)}.")
    for name in set(CANCELLERS) - set(only):
        del CANCELLERS[name]
    files = find_demo()
    voices = Voices(files.mimi.parent)
    session = load_session(files, None, voice={"temperature": 0.0}, text={"temperature": 0.0}, seed=0)
    session.warm_up()
    figures: dict[str, Any] = {}
    if "scenes" in parts:
        figures["scenes"] = scenes(session, voices, args.quick)
        rooms = plain(args.count or 20)
        for name in CANCELLERS:
            after = figures[f"after, {name}"] = [signals(scene, name, voices)["after"] for scene in rooms]
            quiet = sum(level <= 3 for level in after)
            print(
                f"{name}: residual below the noise after 2 s in {quiet} of {len(rooms)} plain rooms; all "
                f"{median(after):.1f} dB above it in the median, {max(after):.1f} at most"
            )
    if "loop" in parts:
        seconds = 20 if args.quick else 60
        further = figures["loop"] = [loop(session, voices, scene, seconds) for scene in plain(args.count or 20)]
        for name in CANCELLERS:
            numbers = [row[name] for row in further]
            quiet = sum(number == 0 for number in numbers)
            print(f"{name}: no further word in {quiet} of {len(numbers)}; {median(numbers):.0f} in the median")
    if "talk" in parts:
        for label, pause in (("in turns", IN_TURNS), ("into its words", INTO)):
            shares = figures[label] = talk(session, voices, plain(args.count or 100), pause)
            print(f"{label}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1))
    return 0


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"measure {', '.join(PARTS)} (default: all)")
    parser.add_argument("--count", type=int, help="use so many plain rooms (default: 20) and dialogues (default: 100)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CANCELLER",
        help="measure only these of none, ours, webrtc, webrtc told, speex, sonora, aec3",
    )
    parser.add_argument("--quick", action="store_true", help="use fewer and shorter scenes")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    return guard(lambda _: run(parser.parse_args()), debug=True)


if __name__ == "__main__":
    sys.exit(main())
