"""Sound between devices and a program, in native code: rings, mixing, the echo canceller.

``Capture`` and ``Playback`` are the buffers between a sound device and the program: their PortAudio callbacks are native
and take no lock, the interpreter's included. ``Mixer`` makes one channel of several.

``Reference`` tells what was played while something was heard, and ``EchoCanceller`` takes the echo of it away.
``VoiceEnhancer`` suppresses noise and controls the gain.

The codec is in the package ``mimi``. Both packages come in one wheel and share one extension module,
``msh_native._native``, which is not public.
"""

from msh_native._native import Capture, EchoCanceller, Mixer, Playback, Reference, VoiceEnhancer

__all__ = [
    "Capture",
    "EchoCanceller",
    "Mixer",
    "Playback",
    "Reference",
    "VoiceEnhancer",
]
