"""Talk with a server by pipecat's service for OpenAI's protocol: `realtime_pipecat.py PORT RECORDING`. Print lines of JSON."""

import asyncio
import importlib.metadata
import json
import sys
import time

import soundfile
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

PIECE = 960  # samples, 40 ms
TOLD = (TTSStartedFrame, TTSStoppedFrame, UserStartedSpeakingFrame, UserStoppedSpeakingFrame)
port, recording = sys.argv[1:]
pcm, _ = soundfile.read(recording, dtype="int16")


class Listener(FrameProcessor):
    """Prints what the service says."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSTextFrame):
            print(json.dumps({"event": "text", "word": frame.text}))
        elif isinstance(frame, TTSAudioRawFrame):
            self.bytes += len(frame.audio)
        elif isinstance(frame, TOLD):
            print(json.dumps({"event": type(frame).__name__}))
        await self.push_frame(frame, direction)


async def main() -> None:
    service = OpenAIRealtimeLLMService(
        api_key="none",
        base_url=f"ws://127.0.0.1:{port}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model="gpt-realtime"),
    )

    @service.event_handler("on_error")
    async def tell(_: object, error: ErrorFrame) -> None:
        print(json.dumps({"error": str(error)}))

    pair, listener = LLMContextAggregatorPair(LLMContext()), Listener()
    params = PipelineParams(audio_in_sample_rate=24_000, audio_out_sample_rate=24_000)
    task = PipelineTask(Pipeline([pair.user(), service, listener, pair.assistant()]), params=params)
    running = asyncio.ensure_future(PipelineRunner(handle_sigint=False).run(task))
    await asyncio.sleep(1)
    await task.queue_frames([LLMRunFrame()])  # as its examples begin; the service asks for a response
    begin, data = time.monotonic(), pcm.tobytes() + bytes(2 * 24_000 * 3)
    for at in range(0, len(data) // 2, PIECE):
        audio = data[2 * at : 2 * (at + PIECE)]
        await task.queue_frames([InputAudioRawFrame(audio=audio, sample_rate=24_000, num_channels=1)])
        await asyncio.sleep(max(0.0, begin + (at + PIECE) / 24_000 - time.monotonic()))
    await task.cancel()
    await running
    print(json.dumps({"version": importlib.metadata.version("pipecat-ai"), "seconds": listener.bytes / 48_000}))


asyncio.run(main())
