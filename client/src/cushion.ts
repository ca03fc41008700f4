// The queue of samples between the network and the loudspeaker, as short as the network allows.

/** All in seconds. */
export const LIMITS = {
  /** The first target, two packets of 40 ms, and the largest, which underruns may raise it to. */
  start: 0.08,
  least: 0.06,
  most: 0.6,
  /** The surplus of a longer queue is dropped at once. */
  overflow: 1,
  /** Sound comes in pieces of this length, so the queue's length varies by as much. */
  packet: 0.04,
  fade: 0.005,
  /** Sound that was on its way when it was hushed comes within this time. */
  late: 0.06,
  /** How long the queue is watched before it counts as too long, and the time without an underrun that lowers the target. */
  watch: 4,
  calm: 10,
  /** The piece that is left out if the queue is too long: at a quiet place, or after a while anywhere. */
  skip: 0.02,
  patience: 5,
} as const;
const QUIET = 1e-5; // mean square, 50 dB below full scale

export interface CushionState {
  /** The queue's length, and the length that it needs before it plays, in seconds. */
  fill: number;
  target: number;
  underruns: number;
  /** Seconds left out to shorten the delay, and seconds lost to an overflow. */
  skipped: number;
  dropped: number;
}

export class Cushion {
  readonly #ring: Float32Array;
  #read = 0;
  #fill = 0; // samples
  #target: number; // samples
  #playing = false;
  #gain = 0; // the fade, in [0, 1]
  #underruns = 0;
  #skipped = 0;
  #dropped = 0;
  #excess = 0; // samples to be left out
  #waited = 0; // samples played since the search for a quiet place began
  #watched = 0; // samples played since #lowest was reset
  #lowest = Infinity; // the shortest length of the queue since then
  #calm = 0; // samples played since the last underrun or lowering
  #hushed = 0; // samples of what comes next that are not heard

  constructor(private readonly rate: number) {
    this.#ring = new Float32Array(Math.ceil(rate * (LIMITS.overflow + 2)));
    this.#target = this.#samples(LIMITS.start);
  }

  get state(): CushionState {
    return {
      fill: this.#fill / this.rate,
      target: this.#target / this.rate,
      underruns: this.#underruns,
      skipped: this.#skipped / this.rate,
      dropped: this.#dropped / this.rate,
    };
  }

  /** Forgets the queue, for another conversation. The target, which depends on the network, stays. */
  clear(): void {
    this.#fill = 0;
    this.#playing = false;
    this.#excess = 0;
    this.#hushed = 0;
    this.#watch();
  }

  /** Puts silence in place of the sound that waits, and of what is still on its way. */
  hush(): void {
    const fade = this.#samples(LIMITS.fade);
    for (let index = 0; index < this.#fill; index++) {
      const at = (this.#read + index) % this.#ring.length;
      this.#ring[at] = (this.#ring[at] as number) * Math.max(0, 1 - index / fade);
    }
    this.#hushed = this.#samples(LIMITS.late);
  }

  push(samples: Float32Array): void {
    const size = this.#ring.length;
    const added = samples.length > size ? samples.subarray(samples.length - size) : samples;
    const lost = Math.max(0, this.#fill + added.length - size) + samples.length - added.length;
    if (lost > 0) {
      this.#dropped += lost;
      this.#read = (this.#read + lost) % size;
      this.#fill = Math.max(0, this.#fill - lost);
    }
    let write = (this.#read + this.#fill) % size;
    for (const sample of added) {
      this.#ring[write] = this.#hushed > 0 ? 0 : sample;
      if (this.#hushed > 0) this.#hushed--;
      if (++write === size) write = 0;
    }
    this.#fill += added.length;
  }

  /** Fills the output with sound, or with silence until enough sound waits. */
  pull(output: Float32Array): void {
    if (!this.#playing && this.#fill >= this.#target) {
      this.#playing = true;
      this.#watch();
    }
    if (this.#playing && this.#fill < output.length + this.#samples(LIMITS.fade)) {
      this.#playing = false;
      this.#underruns++;
      this.#calm = 0;
      const grown = this.#target * 1.5 + this.#samples(0.02);
      this.#target = Math.min(this.#samples(LIMITS.most), Math.round(grown));
    }
    if (this.#playing) this.#shorten(output.length);
    const jump = this.#playing ? this.#jump(output.length) : 0;
    const size = this.#ring.length;
    const step = 1 / this.#samples(LIMITS.fade);
    for (let index = 0; index < output.length; index++) {
      this.#gain = this.#playing ? Math.min(1, this.#gain + step) : Math.max(0, this.#gain - step);
      if (this.#gain === 0 || this.#fill === 0) {
        output[index] = 0;
        if (this.#fill === 0) this.#gain = 0;
        continue;
      }
      let sample = this.#ring[this.#read] as number;
      if (jump > 0) {
        const weight = (index + 0.5) / output.length;
        sample += weight * ((this.#ring[(this.#read + jump) % size] as number) - sample);
      }
      output[index] = sample * this.#gain;
      this.#read = (this.#read + 1) % size;
      this.#fill--;
    }
    this.#read = (this.#read + jump) % size;
    this.#fill -= jump;
  }

  #samples(seconds: number): number {
    return Math.round(seconds * this.rate);
  }

  #watch(): void {
    this.#watched = 0;
    this.#lowest = Infinity;
    this.#waited = 0;
  }

  /** Decides whether the queue is longer than the network requires. */
  #shorten(length: number): void {
    this.#lowest = Math.min(this.#lowest, this.#fill - length);
    this.#watched += length;
    this.#calm += length;
    if (this.#calm >= this.#samples(LIMITS.calm)) {
      this.#calm = 0;
      this.#target = Math.max(this.#samples(LIMITS.least), Math.round(this.#target * 0.9));
    }
    if (this.#excess === 0 && this.#watched >= this.#samples(LIMITS.watch)) {
      const surplus = this.#lowest - (this.#target - this.#samples(LIMITS.packet));
      if (surplus >= this.#samples(LIMITS.skip)) this.#excess = surplus;
      this.#watch();
    }
  }

  /** How many samples to leave out now, with a fade over this output. */
  #jump(length: number): number {
    if (this.#fill > this.#samples(LIMITS.overflow)) {
      const jump = this.#fill - Math.max(this.#target, length);
      this.#dropped += jump;
      this.#excess = 0;
      this.#watch();
      return jump;
    }
    const skip = this.#samples(LIMITS.skip);
    if (this.#excess < skip) {
      this.#excess = 0;
      return 0;
    }
    if (this.#fill < skip + length + this.#samples(LIMITS.fade)) return 0;
    this.#waited += length;
    if (this.#waited < this.#samples(LIMITS.patience) && !this.#quiet(skip + length)) return 0;
    this.#waited = 0;
    this.#excess -= skip;
    this.#skipped += skip;
    this.#lowest = Infinity;
    return skip;
  }

  #quiet(length: number): boolean {
    let sum = 0;
    for (let index = 0; index < length; index++) {
      sum += (this.#ring[(this.#read + index) % this.#ring.length] as number) ** 2;
    }
    return sum < QUIET * length;
  }
}
