import type { CushionState } from "../cushion";

export const PROCESSOR = "conversation";

/** To the worklet: samples to play, at the device's rate; or to forget the queue, or to silence it. */
export type ToWorklet = Float32Array<ArrayBuffer> | "clear" | "hush";

/** From the worklet: samples of the microphone, and as many that were played at the same time. */
export interface FromWorklet {
  heard: Float32Array<ArrayBuffer>;
  played: Float32Array<ArrayBuffer>;
  cushion: CushionState;
}
