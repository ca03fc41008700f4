// Opus in WebAssembly, for browsers without WebCodecs.

import { OpusDecoder } from "opus-decoder";
import encoderUrl from "opus-recorder/dist/encoderWorker.min.js?url";
import { OggReader, packetKind } from "../ogg";
import { SAMPLE_RATE } from "../protocol";
import { BIT_RATE, type Codec } from "./codec";

// Options of opus-recorder.
const INIT = {
  command: "init",
  encoderApplication: 2049, // audio
  encoderBitRate: BIT_RATE,
  encoderFrameSize: 40,
  encoderSampleRate: SAMPLE_RATE,
  maxFramesPerPage: 1,
  numberOfChannels: 1,
  originalSampleRate: SAMPLE_RATE,
};

export const wasm: Codec = {
  name: "WebAssembly",

  async encoder(onPacket) {
    const worker = new Worker(encoderUrl);
    // It answers each "init" with "ready". Pages from before the last "ready" belong to an earlier stream.
    let begun = 0;
    let ready = 0;
    let reader = new OggReader();
    const begin = () => {
      begun++;
      worker.postMessage(INIT);
    };
    await new Promise<void>((resolve, reject) => {
      worker.onerror = (event) => reject(new Error(event.message || "the WebAssembly encoder does not start"));
      worker.onmessage = ({ data }: MessageEvent<{ message: string; page?: Uint8Array }>) => {
        if (data.message === "ready") {
          ready++;
          reader = new OggReader();
          resolve();
        } else if (data.page && ready === begun) {
          // It writes Ogg pages. Take only their packets, since ogg.ts writes the pages.
          for (const packet of reader.feed(data.page)) if (packetKind(packet) === "audio") onPacket(packet);
        }
      };
      begin();
    });
    return {
      encode(samples) {
        worker.postMessage({ command: "encode", buffers: [samples] });
      },
      restart() {
        worker.postMessage({ command: "done" }); // frees its memory, which is limited
        begin();
      },
      close() {
        worker.terminate();
      },
    };
  },

  async decoder(onSamples) {
    const decoder = new OpusDecoder({ channels: 1, sampleRate: SAMPLE_RATE, preSkip: 0 });
    await decoder.ready;
    let chain = Promise.resolve(); // a restart takes a moment, and packets wait for it
    let stream = 0;
    const then = (action: () => unknown) => {
      chain = chain.then(action).then(
        () => undefined,
        () => undefined, // skip a damaged packet
      );
    };
    return {
      decode(packet) {
        const own = stream;
        then(() => {
          if (own !== stream) return;
          const { channelData, samplesDecoded } = decoder.decodeFrame(packet);
          const samples = channelData[0];
          if (samples && samplesDecoded > 0) onSamples(samples.slice(0, samplesDecoded), SAMPLE_RATE);
        });
      },
      restart() {
        stream++;
        then(() => decoder.reset());
      },
      close() {
        stream++;
        then(() => decoder.free());
      },
    };
  },
};
