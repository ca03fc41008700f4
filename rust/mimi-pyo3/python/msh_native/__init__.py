"""Sound between devices and a program, in native code: rings, mixing, the echo canceller.

``Capture`` and ``Playback`` are the buffers between a sound device and the program: their PortAudio callbacks are native
and take no lock, the interpreter's included. ``Mixer`` makes one channel of several.

``Ear`` gives what a microphone hears and ``Mouth`` takes what a loudspeaker says, both at 24 kHz, whatever the rates of the
devices are. An ear takes the loudspeaker's echo away by an ``EchoCanceller``, and has a ``VoiceEnhancer`` suppress noise and
control the gain.

The codec is in the package ``mimi``. Both packages come in one wheel and share one extension module,
``msh_native._native``, which is not public.
"""

from msh_native._native import Capture, Ear, EchoCanceller, Mixer, Mouth, Playback, VoiceEnhancer

__all__ = [
    "Capture",
    "Ear",
    "EchoCanceller",
    "Mixer",
    "Mouth",
    "Playback",
    "VoiceEnhancer",
]
