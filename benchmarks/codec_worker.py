"""One codec in a process of its own, for codec.py. It takes commands as lines of JSON, and answers each with a line.

It needs only numpy and the codec, so that the interpreter of any environment runs it.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from serving import peak_memory, serve

FRAME = 1920
BLOCK = 10  # frames


class Ours:
    """Our codec."""

    def __init__(self, path, threads, weights):
        import mimi

        self._load = lambda: mimi.Mimi(path, num_threads=threads, weights=weights)

    def load(self):
        self.codec = self._load()
        self.encoder, self.decoder = self.codec.encoder(), self.codec.decoder()
        self.encode, self.decode = self.encoder.step, self.decoder.step


class Peer:
    """The peer's codec, with the same interface and shapes as `Ours`."""

    def __init__(self, path, threads, weights):
        import rustymimi

        self._load = lambda: rustymimi.Tokenizer(path, num_codebooks=8)

    def load(self):
        self._tokenizer = self._load()

    def encode(self, pcm):
        return self._tokenizer.encode_step(pcm[None, None])[0]

    def decode(self, codes):
        return self._tokenizer.decode_step(codes[None])[0, 0]


class Worker:
    """The commands. Both codecs have them, except for those whose docstring says "ours only"."""

    def __init__(self, kind, path, threads, pcm, weights):
        self.codec = {"ours": Ours, "peer": Peer}[kind](path, threads, weights)
        self.frames = np.load(pcm).reshape(-1, FRAME)
        self.at = {"encode": 0, "decode": 0}

    def load(self):
        begin = perf_counter()
        self.codec.load()
        loaded = perf_counter()
        self.codec.encode(self.frames[0])
        return {"loaded": loaded - begin, "encoded": perf_counter() - begin}

    def config(self):
        """Return the configuration (ours only)."""
        return {**self.codec.codec.config, "num_codebooks": self.codec.codec.num_codebooks}

    def codes(self, count):
        """Encode the first frames at once, as a stream, and return the codes."""
        return self.codec.encode(np.ascontiguousarray(self.frames[:count].reshape(-1))).tolist()

    def take_codes(self, codes):
        """Take the codes to decode."""
        # A frame's codes have to be contiguous for the peer.
        self.columns = [np.array(column, np.uint32)[:, None] for column in zip(*codes, strict=True)]

    def encode(self, count):
        return self._time("encode", self.codec.encode, self.frames, count)

    def decode(self, count):
        return self._time("decode", self.codec.decode, self.columns, count)

    def _time(self, name, step, frames, count):
        seconds = []
        for _ in range(count):
            frame = frames[self.at[name] % len(frames)]
            self.at[name] += 1
            begin = perf_counter()
            step(frame)
            seconds.append(perf_counter() - begin)
        return seconds

    def stages(self):
        """Return the seconds so far, by direction and stage (ours only)."""
        return {"encode": self.codec.encoder.stage_seconds(), "decode": self.codec.decoder.stage_seconds()}

    def peak(self):
        """Return the peak of the memory in use, in bytes."""
        return peak_memory()

    def together(self, count):
        """Return the wall seconds to encode `count` frames, to decode them, and to do both on two threads (ours only)."""
        tasks = [lambda: self.encode(count), lambda: self.decode(count)]
        alone = []
        for task in tasks:
            begin = perf_counter()
            task()
            alone.append(perf_counter() - begin)
        threads = [threading.Thread(target=task) for task in tasks]
        begin = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"encode": alone[0], "decode": alone[1], "both": perf_counter() - begin}

    def inputs(self, count):
        """Return the seconds of each step on several kinds of sound, and on their codes (ours only)."""
        n = len(self.frames) * FRAME
        square = np.where(np.arange(n) // 27 % 2, -1, 1)  # about 444 Hz
        sounds = {"speech": self.frames, "silence": np.zeros(n), "denormals": np.full(n, 1e-40), "square wave": square}
        sounds = {name: np.float32(sound).reshape(-1, FRAME) for name, sound in sounds.items()}
        codec = self.codec.codec
        streams = {name: (codec.encoder(), codec.decoder()) for name in sounds}
        result = {name: {"encode": [], "decode": []} for name in sounds}
        for at in range(-BLOCK, count, BLOCK):  # the first block is for warming up
            for name, (encoder, decoder) in streams.items():
                for i in range(at + BLOCK, at + 2 * BLOCK):
                    frame = sounds[name][i % len(self.frames)]
                    begin = perf_counter()
                    codes = encoder.step(frame)
                    middle = perf_counter()
                    decoder.step(codes)
                    end = perf_counter()
                    if at >= 0:
                        result[name]["encode"].append(middle - begin)
                        result[name]["decode"].append(end - middle)
        return result

    def ages(self, count, ages):
        """Return the seconds of each step of streams of these ages, in frames, with full windows (ours only)."""
        codec, full = self.codec.codec, -(-self.codec.codec.config["context"] // 2) + 1
        full = min(full, len(self.frames), len(self.columns))
        streams = []
        for age in ages:
            encoder, decoder = codec.encoder(), codec.decoder()
            encoder.reset(position=2 * max(0, age - full))
            decoder.reset(position=2 * max(0, age - full))
            encoder.step(self.frames[:full].reshape(-1))
            decoder.step(np.concatenate(self.columns[:full], axis=1))
            streams.append((encoder, decoder))
        result = [{"encode": [], "decode": []} for _ in ages]
        for at in range(0, count, BLOCK):
            for (encoder, decoder), seconds in zip(streams, result, strict=True):
                for i in range(at, at + BLOCK):
                    begin = perf_counter()
                    encoder.step(self.frames[i % len(self.frames)])
                    middle = perf_counter()
                    decoder.step(self.columns[i % len(self.columns)])
                    end = perf_counter()
                    seconds["encode"].append(middle - begin)
                    seconds["decode"].append(end - middle)
        return result


class Machine:
    """The limits of the machine, as numpy reaches them."""

    _parts = None

    def product(self, threads, size=1024, times=12):
        """Return the best FLOP/s of a float32 matrix product. The environment sets its threads."""
        a = np.random.default_rng(0).standard_normal((size, size), np.float32)
        out = np.empty_like(a)
        return 2 * size**3 / min(self._time(lambda: np.matmul(a, a, out), times))

    def read(self, threads, size, times=1):
        """Return the seconds of reading `size` bytes of float32 numbers from memory, a part in each thread.

        A thread reads one number after the other, or at four places in turn, which is faster on some machines: the faster
        way counts. The numbers stay in memory from call to call.
        """
        length = size // 4 // threads // 4
        if self._parts is None or self._parts.shape != (threads, 4, length):
            self._parts = np.ones((threads, 4, length), np.float32)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(np.sum, range(threads)))  # so that its threads are there
            works = [lambda b: np.dot(b.ravel(), b.ravel()), lambda b: np.dot(b, b[0])]
            return min(min(self._time(lambda w=w: list(pool.map(w, self._parts)), times)) for w in works)

    def reads_together(self, threads, size=64 << 20, times=15):
        """Return the wall time of two simultaneous reads from memory, `threads` each, as a share of one's: the median."""
        parts = np.ones((2, threads, size // 4 // threads), np.float32)
        with ThreadPoolExecutor(2 * threads) as pool:

            def read(parts):
                return list(pool.map(lambda b: np.dot(b, b), parts))

            one = list(self._time(lambda: read(parts[0]), times))
            two = list(self._time(lambda: read(parts.reshape(2 * threads, -1)), times))
        return float(np.median(two) / np.median(one))

    def _time(self, work, times):
        for _ in range(times):
            begin = perf_counter()
            work()
            yield perf_counter() - begin


def make(kind, *arguments):
    if kind == "machine":
        return Machine()
    path, threads, pcm, weights = arguments
    return Worker(kind, path, int(threads), pcm, weights)


if __name__ == "__main__":
    serve(make)
