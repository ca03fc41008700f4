import { describe, expect, test } from "vitest";
import { Resampler } from "../src/resample";

const RATES = [8000, 16_000, 22_050, 44_100, 48_000, 88_200, 96_000, 192_000];

function sine(rate: number, hertz: number, length: number): Float32Array {
  return Float32Array.from({ length }, (_, index) => Math.sin((2 * Math.PI * hertz * index) / rate));
}

function decibels(samples: Float32Array): number {
  const mean = samples.reduce((sum, sample) => sum + sample ** 2, 0) / samples.length;
  return 10 * Math.log10(Math.max(mean * 2, 1e-20)); // against a sine of full scale
}

/** Without what the silence before the beginning does to it. */
function settled(samples: Float32Array, rate: number): Float32Array {
  return samples.subarray(Math.ceil(rate * 0.02));
}

describe.each(RATES.flatMap((rate) => [[24_000, rate] as const, [rate, 24_000] as const]))(
  "%i to %i Hz",
  (from, to) => {
    const low = Math.min(from, to);

    test("what both rates hold stays as it is, in time, phase and loudness", () => {
      for (const part of [0.004, 0.1, 0.25, 0.4, 0.43]) {
        const hertz = part * low;
        const output = new Resampler(from, to).process(sine(from, hertz, from / 5));
        const wanted = sine(to, hertz, output.length);
        const difference = settled(output, to).map((sample, index) => sample - (settled(wanted, to)[index] as number));
        expect(decibels(difference)).toBeLessThan(-60);
      }
    });

    test("what the lower rate does not hold is gone, and nothing else appears", () => {
      if (from > to) {
        for (const part of [0.505, 0.6, 0.8, 1]) {
          const hertz = Math.min(part * low, from * 0.499);
          expect(decibels(settled(new Resampler(from, to).process(sine(from, hertz, from / 5)), to))).toBeLessThan(-75);
        }
      } else {
        // The mirror image of a tone would be as loud as the difference from the true tone.
        const hertz = 0.43 * low;
        const output = settled(new Resampler(from, to).process(sine(from, hertz, from / 5)), to);
        expect(Math.abs(decibels(output))).toBeLessThan(0.1);
      }
    });

    test("pieces give the same as the whole", () => {
      const input = sine(from, 0.2 * low, Math.floor(from / 10));
      const whole = new Resampler(from, to).process(input);
      const resampler = new Resampler(from, to);
      const output: number[] = [];
      for (let position = 0, length = 1; position < input.length; position += length, length = (length * 7 + 3) % 500) {
        output.push(...resampler.process(input.subarray(position, position + length)));
      }
      expect(Float32Array.from(output)).toEqual(whole);
    });

    test("as much comes out as goes in, and soon", () => {
      const resampler = new Resampler(from, to);
      let samples = 0;
      for (let piece = 0; piece < 100; piece++) samples += resampler.process(new Float32Array(from / 50)).length;
      const missing = (2 * to - samples) / to;
      expect(missing).toBeGreaterThanOrEqual(0);
      expect(missing).toBeLessThan(0.007 * Math.max(1, 8000 / low));
    });
  },
);

test("equal rates change nothing", () => {
  const input = sine(24_000, 5000, 100);
  expect(new Resampler(24_000, 24_000).process(input)).toEqual(input);
});
