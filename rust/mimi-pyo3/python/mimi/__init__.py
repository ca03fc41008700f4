"""The Mimi codec: 24 kHz mono audio to and from integer codes, streaming, on the CPU.

``Mimi`` holds the weights and may be shared between threads. ``Mimi.encoder()`` and ``Mimi.decoder()`` give independent
streams; each may be used by one thread at a time.

``kernels()`` names the instruction set that the codec computes with on this machine.

``Tokenizer``, ``StreamTokenizer`` and ``write_wav`` are those of the package ``rustymimi``, on top of the codec.

The package ``msh_native`` has everything else, such as the buffers of sound devices and the echo canceller.
"""

from msh_native._native import Decoder, Encoder, Mimi, MimiError, kernels

from mimi.tokenizer import StreamTokenizer, Tokenizer, write_wav

__all__ = [
    "Decoder",
    "Encoder",
    "Mimi",
    "MimiError",
    "StreamTokenizer",
    "Tokenizer",
    "kernels",
    "write_wav",
]
