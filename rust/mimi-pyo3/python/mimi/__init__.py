"""The Mimi codec: 24 kHz mono audio to and from integer codes, streaming, on the CPU.

``Mimi`` holds the weights and may be shared between threads. ``Mimi.encoder()`` and ``Mimi.decoder()`` give independent
streams; each may be used by one thread at a time.

``Capture`` and ``Playback`` are the buffers between a sound device and the program: their PortAudio callbacks are native
and take no lock, the interpreter's included. ``Reference`` tells what was played while something was heard, and
``EchoCanceller`` takes the echo of it away. ``VoiceEnhancer`` suppresses noise and controls the gain. ``Mixer`` makes one
channel of several.

``kernels()`` names the instruction set that the codec computes with on this machine.

``Tokenizer``, ``StreamTokenizer`` and ``write_wav`` are those of the package ``rustymimi``, on top of the codec.
"""

from mimi._mimi import (
    Capture,
    Decoder,
    EchoCanceller,
    Encoder,
    Mimi,
    MimiError,
    Mixer,
    Playback,
    Reference,
    VoiceEnhancer,
    kernels,
)
from mimi.tokenizer import StreamTokenizer, Tokenizer, write_wav

__all__ = [
    "Capture",
    "Decoder",
    "EchoCanceller",
    "Encoder",
    "Mimi",
    "MimiError",
    "Mixer",
    "Playback",
    "Reference",
    "StreamTokenizer",
    "Tokenizer",
    "VoiceEnhancer",
    "kernels",
    "write_wav",
]
