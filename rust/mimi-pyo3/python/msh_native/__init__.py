"""What is native and is not the codec: sound between devices and a program, and the reader of safetensors files.

``Capture`` and ``Playback`` are the buffers between a sound device and the program. Their PortAudio callbacks are native, and
take no lock, not even the interpreter's. ``Mixer`` makes one channel of several.

Read the sound of a microphone from an ``Ear``, and write the sound of a loudspeaker to a ``Mouth``. Both work at 24 kHz,
whatever the rates of the devices. An ear can remove the loudspeaker's echo with an ``EchoCanceller``, and suppress noise and
control the gain with a ``VoiceEnhancer``.

``OpusEncoder`` and ``OpusDecoder`` turn sound into Opus packets, and back.

``read_header`` checks a safetensors file and says where its tensors are; ``find_not_finite`` reads all its numbers; ``foreign``
recognises files that are something else. A file that is not what it should be raises ``FileError``.

The codec is in the package ``mimi``. Both packages come in one wheel, and share one extension module,
``msh_native._native``, which is not public.
"""

from msh_native._native import (
    Capture,
    Ear,
    EchoCanceller,
    FileError,
    Lm,
    LmConversation,
    LmEngine,
    LmSource,
    Mixer,
    ModelError,
    Mouth,
    OpusDecoder,
    OpusEncoder,
    Playback,
    VoiceEnhancer,
    dots,
    find_not_finite,
    foreign,
    pack,
    read_bandwidth,
    read_header,
)

__all__ = [
    "Capture",
    "Ear",
    "EchoCanceller",
    "FileError",
    "Lm",
    "LmConversation",
    "LmEngine",
    "LmSource",
    "Mixer",
    "ModelError",
    "Mouth",
    "OpusDecoder",
    "OpusEncoder",
    "Playback",
    "VoiceEnhancer",
    "dots",
    "find_not_finite",
    "foreign",
    "pack",
    "read_bandwidth",
    "read_header",
]
