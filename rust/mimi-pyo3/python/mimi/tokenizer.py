"""The classes of the package `rustymimi`, for programs that were written for it: ``import mimi as rustymimi``.

Constructors, methods, shapes and dtypes are those of its version 0.4.1. Each class lists its differences.
"""

from __future__ import annotations

import os
import threading
import wave
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from msh_native._native import Decoder, Encoder, Mimi

__all__ = ["StreamTokenizer", "Tokenizer", "write_wav"]

Pcm = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint32]
AnyCodes = npt.NDArray[np.integer[Any]]
In = TypeVar("In", bound=npt.NDArray[Any])
Out = TypeVar("Out", bound=npt.NDArray[Any])
Stream = TypeVar("Stream", Encoder, Decoder)

DTYPES = ("f32", "f16", "bf16")
SLICE = 12  # frames; after so many, a worker checks whether its result is still wanted


class Tokenizer:
    """A codec with one stream in each direction.

    Arguments
    ---------
    path
        A checkpoint (.safetensors), as for `Mimi`.
    num_codebooks
        How many of its codebooks to use.
    dtype
        ``"f32"``, ``"f16"`` or ``"bf16"``. Weights and arithmetic are float32 in any case.
    max_seq_len
        Accepted, but not used: a stream may be of any length.

    Raises
    ------
    ValueError
        The file is not a Mimi checkpoint, or an argument is out of range.
    OSError
        The file cannot be read.

    Differences from `rustymimi`: `encode` and `decode` do not touch the streams; `reset` forgets everything; codes may be of
    any integer type; arrays need not be contiguous; an empty input gives an empty result.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_codebooks: int = 8,
        dtype: str = "f32",
        max_seq_len: int | None = None,
    ) -> None:
        self._codec = _load(path, num_codebooks, dtype, max_seq_len)
        self._encoders: list[Encoder] = []
        self._decoders: list[Decoder] = []

    def encode(self, pcm_data: Pcm) -> Codes:
        """Encode sound `[batch, 1, samples]` float32, each row on its own, to codes `[batch, codebooks, frames]` uint32.

        Zeros complete the last frame. Raise TypeError for arrays of another type or number of axes, ValueError for other
        sizes and for samples that are not finite.
        """
        return np.stack([self._codec.encode(row) for row in _sound(pcm_data)])

    def encode_step(self, pcm_data: Pcm) -> Codes | None:
        """Continue with `[batch, 1, samples]` float32. Return `[batch, codebooks, frames]` uint32; None: no frame is complete.

        The batch keeps its size until `reset`. Errors are those of `encode`; they change nothing if the batch has one row.
        """
        rows = _sound(pcm_data)
        encoders = _streams(self._encoders, self._codec.encoder, len(rows))
        codes = np.stack([encoder.step(row) for encoder, row in zip(encoders, rows, strict=True)])
        self._encoders = encoders
        return codes if codes.shape[2] else None

    def decode(self, codes: AnyCodes) -> Pcm:
        """Decode `[batch, codebooks, frames]`, each row on its own, to sound `[batch, 1, samples]` float32.

        Raise TypeError for arrays of another type or number of axes, ValueError for other sizes and for codes out of range.
        """
        return np.stack([self._codec.decode(row)[None] for row in self._rows(codes)])

    def decode_step(self, codes: AnyCodes) -> Pcm | None:
        """Continue with `[batch, codebooks, frames]`. Return sound `[batch, 1, samples]` float32; None without frames.

        The batch keeps its size until `reset`. Errors are those of `decode`; they change nothing if the batch has one row.
        """
        rows = self._rows(codes)
        decoders = _streams(self._decoders, self._codec.decoder, len(rows))
        pcm = np.stack([decoder.step(row)[None] for decoder, row in zip(decoders, rows, strict=True)])
        self._decoders = decoders
        return pcm if pcm.shape[2] else None

    def reset(self) -> None:
        """Begin both streams again."""
        self._encoders, self._decoders = [], []

    def _rows(self, codes: AnyCodes) -> AnyCodes:
        _check(codes, "codes", np.integer, 3)
        if not len(codes) or codes.shape[1] != self._codec.num_codebooks:
            raise ValueError(f"codes has the shape {codes.shape}, not [batch, {self._codec.num_codebooks}, frames].")
        return codes


class StreamTokenizer:
    """A codec that works on two threads of its own. Give it sound or codes, and fetch the results later.

    Arguments are those of `Tokenizer`, and `max_seconds`: how much sound may be on its way in each direction, given but not yet
    fetched. No call waits for the codec.

    Differences from `rustymimi`:

    - An error on a thread is raised once, by the next call for that direction, which does nothing else. The input that caused
      it is left out, with the rest of its call, and the stream goes on.
    - If `max_seconds` are on their way already, `encode` and `decode` raise BufferError and take nothing. So nothing is left
      out silently. Catch the error to leave input out, or call `reset` to be up to date again.
    - `reset` begins both streams again, and forgets everything on its way.
    - The threads end with the object, with `close`, or at the end of a ``with`` block.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_codebooks: int = 8,
        dtype: str = "f32",
        max_seq_len: int | None = None,
        max_seconds: float = 30.0,
    ) -> None:
        if not max_seconds > 0:
            raise ValueError(f"max_seconds is {max_seconds}, but has to be more than 0.")
        codec = _load(path, num_codebooks, dtype, max_seq_len)
        encoder, decoder = codec.encoder(), codec.decoder()
        frames = max(1.0, max_seconds * codec.frame_rate)  # with less, no frame would ever be complete
        samples = frames * codec.frame_size
        self._num_codebooks = codec.num_codebooks
        self._encoding = _Lane[Pcm, Codes]("encode", encoder.step, encoder.reset, SLICE * codec.frame_size, samples)
        self._decoding = _Lane[AnyCodes, Pcm]("decode", decoder.step, decoder.reset, SLICE, frames)
        # The threads refer only to the lanes, so they do not keep this object alive. At exit they end before the interpreter:
        # native code that returned after its end would crash the process.
        self._end = weakref.finalize(self, _close, self._encoding, self._decoding)

    def encode(self, pcm_data: Pcm) -> None:
        """Take a copy of sound `[samples]` float32, of any length.

        Raise TypeError for arrays of another type or number of axes, BufferError if too much is on its way.
        """
        _check(pcm_data, "pcm_data", np.float32, 1)
        self._encoding.put(np.array(pcm_data))

    def get_encoded(self) -> Codes | None:
        """Return the oldest codes that were not fetched yet, `[codebooks, frames]` uint32. None: there are none yet.

        They belong to one call of `encode`. A call that completed no frame has none.
        """
        return self._encoding.get()

    def decode(self, codes: AnyCodes) -> None:
        """Take a copy of codes `[frames, codebooks]`, of one frame or several.

        Raise TypeError for arrays of another type or number of axes, ValueError for another number of codebooks,
        BufferError if too much is on its way.
        """
        _check(codes, "codes", np.integer, 2)
        if codes.shape[1] != self._num_codebooks:
            raise ValueError(f"codes has the shape {codes.shape}, not [frames, {self._num_codebooks}].")
        self._decoding.put(np.array(codes.T))

    def get_decoded(self) -> Pcm | None:
        """Return the oldest sound that was not fetched yet, `[samples]` float32. None: there is none yet.

        It belongs to one call of `decode`.
        """
        return self._decoding.get()

    def reset(self) -> None:
        """Begin both streams again. Forget everything on its way, errors included."""
        self._encoding.reset()
        self._decoding.reset()

    def close(self) -> None:
        """End the threads. From then on, all other calls raise ValueError."""
        self._end()

    def __enter__(self) -> StreamTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_wav(filename: str | os.PathLike[str], data: Pcm, sample_rate: int) -> None:
    """Write sound `[samples]` float32 to a WAV file, 16 bits, mono. Samples outside [-1, 1] are clipped.

    Raise TypeError for arrays of another type or number of axes, OSError if the file cannot be written.
    """
    _check(data, "data", np.float32, 1)
    with Path(filename).open("wb") as place, wave.open(place, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.nan_to_num(data).clip(-1, 1) * np.float32(32767)).astype("<i2").tobytes())


class _Lane(Generic[In, Out]):
    """One direction: its inputs, its results, and its thread. Amounts are lengths of the input's last axis."""

    def __init__(
        self, name: str, step: Callable[[In], Out], restart: Callable[[], None], slice_size: int, limit: float
    ) -> None:
        self._name, self._step, self._restart, self._slice, self._limit = name, step, restart, slice_size, limit
        self._waiting: deque[In] = deque()
        self._done: deque[tuple[int, Out]] = deque()
        self._on_its_way = 0
        self._error: BaseException | None = None
        self._turn = 0  # counts resets
        self._open = True
        # Reentrant: the garbage collector may close a lane on a thread that holds the lock.
        self._change = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._work, name=f"mimi-{name}", daemon=True)
        self._thread.start()

    def put(self, item: In) -> None:
        with self._change:
            self._check()
            if self._on_its_way >= self._limit:
                raise BufferError(
                    f"There is too much to {self._name} already; fetch the results, or reset the tokenizer."
                )
            if item.shape[-1]:
                self._on_its_way += item.shape[-1]
                self._waiting.append(item)
                self._change.notify()

    def get(self) -> Out | None:
        with self._change:
            self._check()
            if not self._done:
                return None
            amount, out = self._done.popleft()
            self._on_its_way -= amount
            return out

    def reset(self) -> None:
        with self._change:
            if not self._open:
                raise ValueError("The tokenizer is closed.")
            self._waiting.clear()
            self._done.clear()
            self._on_its_way, self._error = 0, None
            self._turn += 1

    def close(self) -> None:
        with self._change:
            self._open = False
            self._change.notify()

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check(self) -> None:
        if not self._open:
            raise ValueError("The tokenizer is closed.")
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        turn, amount = 0, 0  # amount: of the input since the last result that was not empty
        while True:
            with self._change:
                while self._open and not self._waiting:
                    self._change.wait()
                if not self._open:
                    return
                item, anew = self._waiting.popleft(), turn != self._turn
                turn = self._turn
            outs: list[Out] = []
            error = None
            try:
                if anew:
                    amount = 0
                    self._restart()
                # Work in slices, so that closing and resetting do not have to wait for long.
                for at in range(0, item.shape[-1], self._slice):
                    if turn != self._turn or not self._open:
                        break
                    outs.append(self._step(item[..., at : at + self._slice]))  # type: ignore[arg-type]
            except BaseException as raised:  # a panic in native code is not an Exception
                error = raised
            with self._change:
                if turn != self._turn or not self._open:
                    continue
                self._error = self._error or error
                amount += item.shape[-1]
                if any(out.shape[-1] for out in outs):
                    self._done.append((amount, np.concatenate(outs, axis=-1)))  # type: ignore[arg-type]
                    amount = 0
                elif error:
                    self._on_its_way -= amount
                    amount = 0


def _close(*lanes: _Lane[Any, Any]) -> None:
    for lane in lanes:
        lane.close()
    for lane in lanes:
        lane.join()


def _load(path: str | os.PathLike[str], num_codebooks: int, dtype: str, max_seq_len: int | None) -> Mimi:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, not one of {', '.join(DTYPES)}.")
    if max_seq_len is not None and max_seq_len < 1:
        raise ValueError(f"max_seq_len is {max_seq_len}, but has to be at least 1.")
    return Mimi(path, num_codebooks=num_codebooks)


def _check(array: npt.NDArray[Any], name: str, dtype: Any, axes: int) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} has to be a numpy array, not {type(array).__name__}.")
    if not np.issubdtype(array.dtype, dtype) or array.ndim != axes:
        kind = "integers" if dtype is np.integer else dtype.__name__
        raise TypeError(f"{name} has to have {axes} axes of {kind}, not {array.ndim} of {array.dtype}.")


def _sound(pcm_data: Pcm) -> Pcm:
    """Return the rows of a batch, `[batch, samples]`."""
    _check(pcm_data, "pcm_data", np.float32, 3)
    if not len(pcm_data) or pcm_data.shape[1] != 1:
        raise ValueError(f"pcm_data has the shape {pcm_data.shape}, not [batch, 1, samples].")
    return pcm_data[:, 0]


def _streams(streams: list[Stream], make: Callable[[], Stream], batch: int) -> list[Stream]:
    if streams and len(streams) != batch:
        raise ValueError(
            f"The batch has {batch} rows, but {len(streams)} streams are going on; reset the tokenizer first."
        )
    return streams or [make() for _ in range(batch)]
