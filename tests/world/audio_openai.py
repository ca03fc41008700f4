"""Transcription and speech with OpenAI's package: the arguments are the server's port and a recording of six digits.

A line of JSON for each thing that came back.
"""

import json
import sys
from pathlib import Path

import openai

TEXT = "three one four"


def tell(**values):
    print(json.dumps(values), flush=True)


def main():
    port, recording = sys.argv[1], Path(sys.argv[2])
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
    tell(version=openai.__version__)
    tell(models=[model.id for model in client.models.list()], one=client.models.retrieve("demo-stt").id)
    hear = client.audio.transcriptions.create
    for form in ("json", "text", "srt", "vtt"):
        heard = hear(model="whisper-1", file=recording, response_format=form)
        tell(form=form, text=heard if isinstance(heard, str) else heard.text)
    both = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
    heard = hear(model="whisper-1", file=recording.open("rb"), **both)
    words = [[word.word, word.start, word.end] for word in heard.words]
    segments = [[segment.id, segment.start, segment.end, segment.text] for segment in heard.segments]
    tell(form="verbose_json", text=heard.text, words=words, segments=segments, seconds=heard.duration)
    options = {"language": "en", "prompt": "digits", "temperature": 0, "stream": True}
    for event in hear(model="gpt-4o-transcribe", file=("x.flac", recording.read_bytes()), **options):
        tell(event=event.type, kind=type(event).__name__, text=getattr(event, "delta", None) or event.text)
    for form in ("mp3", "opus", "flac", "wav", "pcm"):
        asked = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": form}
        with client.audio.speech.with_streaming_response.create(**asked) as answer:
            pieces = list(answer.iter_bytes())
        data = b"".join(pieces)
        said = "" if form == "pcm" else hear(model="demo-stt", file=(f"x.{form}", data)).text
        tell(form=form, kind=answer.headers["content-type"], pieces=len(pieces), bytes=len(data), said=said)
    for name, ask in {
        "voice": lambda: client.audio.speech.create(model="tts-1", voice="nobody", input=TEXT),
        "aac": lambda: client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format="aac"),
        "model": lambda: hear(model="gpt-5", file=recording),
        "file": lambda: hear(model="whisper-1", file=("x.wav", b"x")),
        "stream": lambda: hear(model="whisper-1", file=("x.wav", b"x"), stream=True),
        "retrieve": lambda: client.models.retrieve("gpt-5"),
    }.items():
        try:
            ask()
        except openai.APIStatusError as error:
            tell(error=name, kind=type(error).__name__, param=error.param, text=error.message)


main()
