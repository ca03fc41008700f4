"""Tell which words of the demo's voice are in a sound: `hear.py FILE.wav CHANNEL` prints them as JSON, with their places.

Each of the ten words is decoded from its codes in voice.json and looked for at every sample. Opus alone leaves a likeness of
0.97 and more; a wrong word has 0.4 at most. (The codes themselves do not survive Opus, so the codec's encoder cannot tell.)
"""

import json
import sys
from pathlib import Path

import mimi
import numpy as np
import soundfile

DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"
LEAST = 0.85


def likeness(sound: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Return how alike (-1 to 1) the template and the sound are at each sample; silence is like nothing."""
    size = 1 << (len(sound) + len(template)).bit_length()
    products = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(template, size)), size)[: len(sound)]
    energy = np.concatenate([[0], np.cumsum(np.concatenate([sound, np.zeros(len(template))]) ** 2)])
    energy = energy[len(template) : len(template) + len(sound)] - energy[: len(sound)]
    own = float(np.square(template).sum())
    return products / np.sqrt(np.maximum(energy, 1e-3 * own) * own)


def main(file: str, channel: int) -> None:
    sound, rate = soundfile.read(file, always_2d=True)
    assert rate == 24_000
    sound = sound[:, channel]
    codec = mimi.Mimi(DEMO / "mimi.safetensors")
    voice = json.loads((DEMO / "voice.json").read_text())["words"]
    templates = {
        word: codec.decode(np.array(codes, np.uint32).T.copy()).astype(np.float64) for word, codes in voice.items()
    }
    scores = {word: likeness(sound, template) for word, template in templates.items()}
    found = []
    while True:  # the surest first, and nothing else where it is
        word = max(scores, key=lambda word: scores[word].max())
        at = int(scores[word].argmax())
        if scores[word][at] < LEAST:
            break
        found.append({"word": word, "seconds": at / rate, "likeness": float(scores[word][at])})
        for other, template in templates.items():
            scores[other][max(0, at - len(template) * 3 // 4) : at + len(templates[word]) * 3 // 4] = 0
    print(json.dumps(sorted(found, key=lambda word: word["seconds"])))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
