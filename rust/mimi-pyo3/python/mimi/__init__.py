"""The Mimi codec: 24 kHz mono audio to and from integer codes, streaming, on the CPU.

``Mimi`` holds the weights and may be shared between threads. ``Mimi.encoder()`` and ``Mimi.decoder()`` give independent
streams; each may be used by one thread at a time.
"""

from mimi._mimi import Decoder, Encoder, Mimi, MimiError

__all__ = ["Decoder", "Encoder", "Mimi", "MimiError"]
