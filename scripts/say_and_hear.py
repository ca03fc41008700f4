"""Say seeded lists of words with the demo text to speech, and count how many the demo speech to text hears.

PYTHONPATH=. python scripts/say_and_hear.py [--count WORDS] [--length WORDS] [--seed N]

For each voice, greedy and sampled, the program prints how many words are right, of how many. A word that is missing, wrong or
too many counts as an error. It ends with 1 if less than 95 % are right anywhere.
"""

from __future__ import annotations

import random
import sys

from msh_mlx.cli.options import Parser, whole
from msh_mlx.cli.program import guard
from msh_mlx.system.signals import Signals

LEAST = 0.95
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def errors(said: list[str], heard: list[str]) -> int:
    """Return how many words must be changed, left out or put in to make one list of the other."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


def run(arguments: list[str], signals: Signals) -> int:
    parser = Parser(prog="say_and_hear.py", description="Count the words that the demo says and hears.")
    parser.add_argument(
        "--count", metavar="WORDS", type=whole(1), default=120, help="say so many (default: %(default)s)"
    )
    length = "say so many at a time (default: %(default)s)"
    parser.add_argument("--length", metavar="WORDS", type=whole(1), default=12, help=length)
    parser.add_argument("--seed", metavar="N", type=whole(0), default=0, help="seed words and voice (default: 0)")
    args = parser.parse_args(arguments)
    import numpy as np

    from msh_mlx import Sampler, Speaker, load_lm, load_mimi, load_tokenizer, read_speaker
    from msh_mlx.conversation.transcriber import Transcriber
    from msh_mlx.library.files import find_demo
    from msh_mlx.library.speech_voices import voices_beside

    files, ears = find_demo("speech"), find_demo("transcription")
    mimi, tokenizer = load_mimi(files.mimi), load_tokenizer(files.tokenizer)
    lm = load_lm(files.model, files.config)
    transcriber = Transcriber(load_lm(ears.model, ears.config), mimi, tokenizer)
    good = True
    for name, path in {"no voice": None, **voices_beside(files.model)}.items():
        voices = [read_speaker(path)] if path else []
        for temperature in (0.0, 0.6):
            rng, wrong, left = random.Random(args.seed), 0, args.count
            sampler = Sampler(temperature)
            speaker = Speaker(
                lm, mimi, tokenizer, voices=voices, text_sampler=sampler, audio_sampler=sampler, seed=args.seed
            )
            while left:
                words = [rng.choice(_WORDS) for _ in range(min(left, args.length))]
                left -= len(words)
                sound = np.concatenate([frame.pcm for frame in speaker.say(" ".join(words))])
                transcriber.reset()
                heard = [*transcriber.push(sound), *transcriber.flush()]
                wrong += errors(words, [word.text for word in heard])
                signals.check()
            right = args.count - wrong
            good = good and right >= LEAST * args.count
            print(f"{name}, temperature {temperature:g}: {right} of {args.count} words right", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(guard(lambda signals: run(sys.argv[1:], signals)))
