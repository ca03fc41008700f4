// Microphone and loudspeaker in one processor, so that both voices of the recording are on one clock.

import { Cushion } from "../cushion";
import { type FromWorklet, PROCESSOR, type ToWorklet } from "./messages";

// How much sound goes into one message: small for a short delay, but not too many messages for the main thread.
const PIECE_SECONDS = 0.01;
const QUANTUM = 128;

class Conversation extends AudioWorkletProcessor {
  readonly #cushion = new Cushion(sampleRate);
  readonly #size = Math.max(1, Math.round((sampleRate * PIECE_SECONDS) / QUANTUM)) * QUANTUM;
  #heard = new Float32Array(this.#size);
  #played = new Float32Array(this.#size);
  #used = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }: MessageEvent<ToWorklet>) => {
      if (data === "clear") this.#cushion.clear();
      else if (data === "hush") this.#cushion.hush();
      else this.#cushion.push(data);
    };
  }

  override process(inputs: Float32Array[][], outputs: Float32Array[][]): boolean {
    const output = outputs[0]?.[0];
    if (!output) return true;
    this.#cushion.pull(output);
    const input = inputs[0]?.[0]; // none while the microphone is being changed
    if (input) this.#heard.set(input, this.#used);
    this.#played.set(output, this.#used);
    this.#used += output.length;
    if (this.#used === this.#size) this.#tell();
    return true;
  }

  #tell(): void {
    const message: FromWorklet = {
      heard: this.#heard.slice(0, this.#used),
      played: this.#played.slice(0, this.#used),
      cushion: this.#cushion.state,
    };
    this.port.postMessage(message, [message.heard.buffer, message.played.buffer]);
    this.#heard.fill(0);
    this.#used = 0;
  }
}

registerProcessor(PROCESSOR, Conversation);
