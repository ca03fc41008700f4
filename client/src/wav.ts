// The recording of a conversation: two voices, 16 bits, kept in pieces that the browser may put on its disk.

const BYTES = 4; // of a pair of samples
const PIECE_SECONDS = 30;

export class Recording {
  #done: Blob[] = [];
  #doneSamples = 0;
  #piece: Int16Array<ArrayBuffer>;
  #used = 0; // pairs in the piece

  constructor(
    readonly rate: number,
    readonly limitSeconds: number,
  ) {
    this.#piece = new Int16Array(2 * PIECE_SECONDS * rate);
  }

  get seconds(): number {
    return (this.#doneSamples + this.#used) / this.rate;
  }

  get full(): boolean {
    return this.seconds >= this.limitSeconds;
  }

  /** Adds samples of both voices, of equal length, in [-1, 1]. Samples beyond the limit of the recording are left out. */
  append(left: Float32Array, right: Float32Array): void {
    const room = this.limitSeconds * this.rate - this.#doneSamples - this.#used;
    const count = Math.min(left.length, right.length, Math.max(0, room));
    for (let index = 0; index < count; index++) {
      this.#piece[2 * this.#used] = toInt16(left[index] as number);
      this.#piece[2 * this.#used + 1] = toInt16(right[index] as number);
      if (2 * ++this.#used === this.#piece.length) {
        this.#done.push(new Blob([this.#piece]));
        this.#doneSamples += this.#used;
        this.#used = 0;
      }
    }
  }

  /** The recording as a WAV file, with the user's voice on the left. */
  toWav(): Blob {
    const samples = this.#doneSamples + this.#used;
    const rest = this.#piece.slice(0, 2 * this.#used);
    return new Blob([wavHeader(samples, this.rate), ...this.#done, rest], { type: "audio/wav" });
  }
}

export function toInt16(sample: number): number {
  return Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
}

/** The 44 bytes that begin a WAV file of so many pairs of 16-bit samples. */
export function wavHeader(samples: number, rate: number): Uint8Array<ArrayBuffer> {
  const header = new Uint8Array(44);
  const fields = new DataView(header.buffer);
  const name = (offset: number, text: string) => header.set(new TextEncoder().encode(text), offset);
  name(0, "RIFF");
  fields.setUint32(4, 36 + samples * BYTES, true);
  name(8, "WAVEfmt ");
  fields.setUint32(16, 16, true);
  fields.setUint16(20, 1, true); // whole numbers
  fields.setUint16(22, 2, true);
  fields.setUint32(24, rate, true);
  fields.setUint32(28, rate * BYTES, true);
  fields.setUint16(32, BYTES, true);
  fields.setUint16(34, 16, true);
  name(36, "data");
  fields.setUint32(40, samples * BYTES, true);
  return header;
}
