"""Published clients against our server, as a user starts it."""

import asyncio

import numpy as np
import pytest
import soundfile
from published import client
from test_client import DIGITS, server

from msh_mlx.net.messages import Audio, Handshake, MetaData, Text, decode
from msh_mlx.net.opus import OpusDecoder

__all__ = ["server"]

GREEDY = "text_temperature=0&audio_temperature=0"


def texts(messages):
    return [message.text for data in messages if isinstance(message := decode(data), Text)]


@pytest.mark.parametrize("kind", ["R", "T", "W"])
def test_a_published_client_is_understood(server, kind):
    """What it says arrives, in real time; what it hears are words behind a handshake, and sound without a gap."""
    pcm = soundfile.read(DIGITS, dtype="float32")[0]
    url = f"http://127.0.0.1:{server}/api/chat?{GREEDY}"
    messages = asyncio.run(client(kind, url, pcm, until=lambda received: len(texts(received)) >= 2, pace=0.08))
    known = [decode(data) for data in messages]
    kinds = [type(message) for message in known]
    begin = kinds.index(Handshake)
    assert messages[begin] == bytes(9)
    assert set(kinds[:begin]) == {MetaData}
    assert Audio not in kinds[:begin]
    assert texts(messages)[0] == " four"
    decoder = OpusDecoder()
    sound = np.concatenate([decoder.decode(message.data) for message in known if isinstance(message, Audio)])
    assert decoder.faults == 0
    assert len(sound) % 1920 == 0
    assert np.abs(sound).max() > 0.02
