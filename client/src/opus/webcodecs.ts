// The browser's own Opus codec.

import { PACKET_SAMPLES, SAMPLE_RATE } from "../protocol";
import { BIT_RATE, type Codec } from "./codec";

const MICROSECONDS = 1e6 / SAMPLE_RATE;

const ENCODING = {
  codec: "opus",
  sampleRate: SAMPLE_RATE,
  numberOfChannels: 1,
  bitrate: BIT_RATE,
  // A browser that does not know these makes packets of 20 ms, which work as well.
  opus: { format: "opus", application: "audio", frameDuration: PACKET_SAMPLES * MICROSECONDS },
};
const DECODING = { codec: "opus", sampleRate: SAMPLE_RATE, numberOfChannels: 1 };

export const webCodecs: Codec = {
  name: "WebCodecs",

  async encoder(onPacket) {
    let encoder: AudioEncoder | null = null;
    let position = 0;
    const open = () => {
      // A codec that was replaced may still call back.
      const created: AudioEncoder = new AudioEncoder({
        output: (chunk) => {
          if (created !== encoder) return;
          const packet = new Uint8Array(chunk.byteLength);
          chunk.copyTo(packet);
          onPacket(packet);
        },
        error: () => {
          if (created === encoder) encoder = null;
        },
      });
      created.configure(ENCODING as AudioEncoderConfig);
      return created;
    };
    const close = () => {
      if (encoder && encoder.state !== "closed") encoder.close();
      encoder = null;
    };
    encoder = open();
    return {
      encode(samples) {
        encoder ??= open();
        const data = new AudioData({
          format: "f32-planar",
          sampleRate: SAMPLE_RATE,
          numberOfChannels: 1,
          numberOfFrames: samples.length,
          timestamp: Math.round(position * MICROSECONDS),
          data: samples,
        });
        position += samples.length;
        encoder.encode(data);
        data.close();
      },
      restart() {
        close();
        encoder = open();
      },
      close,
    };
  },

  async decoder(onSamples) {
    let decoder: AudioDecoder | null = null;
    let position = 0;
    const open = () => {
      const created: AudioDecoder = new AudioDecoder({
        output: (data) => {
          if (created === decoder) {
            const samples = new Float32Array(data.numberOfFrames);
            data.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
            onSamples(samples, data.sampleRate);
          }
          data.close();
        },
        error: () => {
          if (created === decoder) decoder = null;
        },
      });
      created.configure(DECODING);
      return created;
    };
    const close = () => {
      if (decoder && decoder.state !== "closed") decoder.close();
      decoder = null;
    };
    decoder = open();
    return {
      decode(packet) {
        decoder ??= open();
        decoder.decode(
          new EncodedAudioChunk({ type: "key", timestamp: Math.round(position * MICROSECONDS), data: packet }),
        );
        position += PACKET_SAMPLES;
      },
      restart() {
        close();
        decoder = open();
      },
      close,
    };
  },
};
