// Changes the rate of a stream of samples by any ratio, by windowed sincs in polyphase form.

// Of the lower of the two rates: flat up to 0.4375, 6 dB down at 0.46875, silent from 0.5.
const CUTOFF = 0.46875;
// Zero crossings on either side, which with the window's shape make the edge that steep and what is beyond it -90 dB.
const CROSSINGS = 46;
const KAISER = 9;

export class Resampler {
  readonly #up: number;
  readonly #down: number;
  readonly #half: number; // taps on either side
  readonly #phases: Float32Array; // [up, 2 half]
  #history: Float32Array; // the input from #first on
  #first: number; // index in the whole input, may be negative: silence before the beginning
  #next = 0; // index of the next output

  constructor(from: number, to: number) {
    const divisor = gcd(from, to);
    this.#up = to / divisor;
    this.#down = from / divisor;
    if (from === to) {
      this.#half = 0;
      this.#phases = new Float32Array(0);
    } else {
      this.#half = Math.ceil(CROSSINGS * Math.max(1, from / to));
      this.#phases = phases(this.#up, this.#half, CUTOFF * Math.min(1, to / from));
    }
    this.#history = new Float32Array(Math.max(0, this.#half - 1));
    this.#first = -this.#history.length;
  }

  /**
   * Takes any number of samples, and returns those that are ready. Output n belongs to the time of input n from / to. It is
   * not shifted, and only comes later, by 2 ms at most.
   */
  process(input: Float32Array): Float32Array<ArrayBuffer> {
    if (this.#half === 0) return input.slice() as Float32Array<ArrayBuffer>;
    const data = new Float32Array(this.#history.length + input.length);
    data.set(this.#history);
    data.set(input, this.#history.length);
    const taps = 2 * this.#half;
    // The last input that an output at position x needs is floor(x) + half.
    const usable = this.#first + data.length - this.#half; // floor(x) must be below it
    const end = Math.max(this.#next, Math.ceil((usable * this.#up) / this.#down));
    const output = new Float32Array(end - this.#next);
    for (let index = 0; index < output.length; index++) {
      const position = (this.#next + index) * this.#down;
      const start = Math.floor(position / this.#up) - this.#half + 1 - this.#first;
      const row = (position % this.#up) * taps;
      let sum = 0;
      for (let tap = 0; tap < taps; tap++) sum += (data[start + tap] as number) * (this.#phases[row + tap] as number);
      output[index] = sum;
    }
    this.#next = end;
    const keep = Math.floor((end * this.#down) / this.#up) - this.#half + 1;
    this.#history = data.slice(Math.max(0, keep - this.#first));
    this.#first = keep;
    // Subtract whole periods, so that the numbers stay exact for hours.
    const periods = Math.floor(this.#next / this.#up) - 1;
    if (periods > 0) {
      this.#next -= periods * this.#up;
      this.#first -= periods * this.#down;
    }
    return output;
  }
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

function phases(up: number, half: number, cutoff: number): Float32Array {
  const taps = 2 * half;
  const table = new Float32Array(up * taps);
  for (let phase = 0; phase < up; phase++) {
    const row = Array.from({ length: taps }, (_, tap) => {
      const time = tap - half + 1 - phase / up;
      const angle = 2 * Math.PI * cutoff * time;
      const sinc = angle === 0 ? 1 : Math.sin(angle) / angle;
      return sinc * bessel(KAISER * Math.sqrt(Math.max(0, 1 - (time / half) ** 2)));
    });
    const sum = row.reduce((total, value) => total + value, 0);
    table.set(
      row.map((value) => value / sum),
      phase * taps,
    );
  }
  return table;
}

/** The modified Bessel function of the first kind and order 0. */
function bessel(x: number): number {
  let term = 1;
  let sum = 1;
  for (let k = 1; term > sum * 1e-12; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}
