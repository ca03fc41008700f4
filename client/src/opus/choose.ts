// Chooses the Opus codec that works here. A browser's own claim is not enough: each codec is tried with a tone.

import { GRANULE_RATE, packetSamples } from "../ogg";
import { PACKET_SAMPLES, SAMPLE_RATE } from "../protocol";
import type { Codec } from "./codec";
import { wasm } from "./wasm";
import { webCodecs } from "./webcodecs";

const PACKETS = 10;
const PATIENCE_MS = 2000;
const TONE_HZ = 440;
const AMPLITUDE = 0.5;

export async function chooseCodec(): Promise<Codec> {
  if (typeof AudioEncoder === "undefined" || typeof AudioDecoder === "undefined") return wasm;
  return (await works(webCodecs)) ? webCodecs : wasm;
}

/** Whether a tone comes back without a flush, as long and as loud as it went in. */
async function works(codec: Codec): Promise<boolean> {
  const closers: { close(): void }[] = [];
  let encoded = 0; // seconds
  let decoded = 0;
  let energy = 0; // squares times seconds
  try {
    return await new Promise<boolean>((resolve, reject) => {
      setTimeout(() => resolve(false), PATIENCE_MS);
      const run = async () => {
        const decoder = await codec.decoder((samples, rate) => {
          decoded += samples.length / rate;
          for (const sample of samples) energy += (sample * sample) / rate;
          const whole = (PACKETS * PACKET_SAMPLES) / SAMPLE_RATE;
          const allowed = PACKET_SAMPLES / SAMPLE_RATE; // that one packet is still on its way in either codec
          if (decoded > whole - 1.5 * allowed) {
            const loudness = energy / decoded / (AMPLITUDE ** 2 / 2);
            resolve(Math.abs(encoded - decoded) < 1.5 * allowed && loudness > 0.5 && loudness < 1.5);
          }
        });
        closers.push(decoder);
        const encoder = await codec.encoder((packet) => {
          encoded += packetSamples(packet) / GRANULE_RATE;
          decoder.decode(packet);
        });
        closers.push(encoder);
        for (let packet = 0; packet < PACKETS; packet++) {
          encoder.encode(
            Float32Array.from({ length: PACKET_SAMPLES }, (_, index) => {
              const time = (packet * PACKET_SAMPLES + index) / SAMPLE_RATE;
              return AMPLITUDE * Math.sin(2 * Math.PI * TONE_HZ * time);
            }),
          );
        }
      };
      run().catch(reject);
    });
  } catch {
    return false;
  } finally {
    for (const { close } of closers) close();
  }
}
