import { describe, expect, test } from "vitest";
import { Cushion, LIMITS } from "../src/cushion";

const RATE = 48_000;
const QUANTUM = 128;
const PACKET = RATE * LIMITS.packet;

/** Lets time pass; `arrivals` says how many packets come before which quantum. */
function run(
  cushion: Cushion,
  seconds: number,
  arrivals: (quantum: number) => number,
  sound: (index: number) => number = () => 0.5,
): Float32Array {
  const quanta = Math.round((seconds * RATE) / QUANTUM);
  const heard = new Float32Array(quanta * QUANTUM);
  let sent = 0;
  for (let quantum = 0; quantum < quanta; quantum++) {
    for (let packet = arrivals(quantum); packet > 0; packet--) {
      cushion.push(Float32Array.from({ length: PACKET }, () => sound(sent++)));
    }
    cushion.pull(heard.subarray(quantum * QUANTUM, (quantum + 1) * QUANTUM));
  }
  return heard;
}

/** A packet every 15 quanta, which are 40 ms. */
const regular = (quantum: number) => (quantum % 15 === 0 ? 1 : 0);

function biggestStep(samples: Float32Array): number {
  return samples.reduce((most, sample, index) => Math.max(most, Math.abs(sample - (samples[index - 1] ?? 0))), 0);
}

const tone = (index: number) => 0.5 * Math.sin((2 * Math.PI * 200 * index) / RATE);

describe("a calm network", () => {
  test("plays all of it after the first filling, and nothing is lost or left out", () => {
    const cushion = new Cushion(RATE);
    const heard = run(cushion, 8, regular, (index) => index + 1);
    const begin = heard.findIndex((sample) => sample !== 0);
    expect(begin / RATE).toBeLessThan(LIMITS.start + 0.001);
    const fade = LIMITS.fade * RATE;
    for (let index = fade; index < heard.length - begin; index++) expect(heard[begin + index]).toBe(index + 1);
    expect(cushion.state).toMatchObject({ underruns: 0, skipped: 0, dropped: 0 });
    expect(cushion.state.fill).toBeLessThanOrEqual(LIMITS.start);
  });

  test("lets the target sink to the least", () => {
    const cushion = new Cushion(RATE);
    run(cushion, 60, regular);
    expect(cushion.state.target).toBeCloseTo(LIMITS.least, 3);
    expect(cushion.state.underruns).toBe(0);
  });
});

describe("a hush", () => {
  test("silences what waits and what is on its way, without a click, and nothing else", () => {
    const cushion = new Cushion(RATE);
    run(cushion, 1, regular, tone);
    const { fill } = cushion.state;
    cushion.hush();
    const heard = run(cushion, 1, regular, tone);
    const silent = Math.round((fill + LIMITS.late) * RATE);
    expect(heard.subarray(LIMITS.fade * RATE, silent - 1).every((sample) => sample === 0)).toBe(true);
    expect(biggestStep(heard.subarray(0, silent - 1))).toBeLessThan(0.02);
    expect(Math.max(...heard.subarray(silent))).toBeGreaterThan(0.4);
    expect(cushion.state).toMatchObject({ underruns: 0, skipped: 0, dropped: 0 });
  });
});

describe("a pause of the network", () => {
  test("is one underrun, without a click, after which the target is higher", () => {
    const cushion = new Cushion(RATE);
    // Nothing for a second, then all of it at once.
    const heard = run(
      cushion,
      6,
      (quantum) => (quantum >= 750 && quantum < 1125 ? 0 : quantum === 1125 ? 25 : regular(quantum)),
      tone,
    );
    expect(cushion.state.underruns).toBe(1);
    expect(cushion.state.target).toBeGreaterThan(LIMITS.start);
    const steepest = 0.5 * ((2 * Math.PI * 200) / RATE);
    expect(biggestStep(heard)).toBeLessThan(steepest + 0.5 / (LIMITS.fade * RATE) + 0.002);
  });

  test("leaves a delay that goes away again", () => {
    const cushion = new Cushion(RATE);
    const quiet = (index: number) => (index % RATE < RATE / 2 ? tone(index) : 0);
    run(
      cushion,
      40,
      (quantum) => (quantum >= 750 && quantum < 900 ? 0 : quantum === 900 ? 10 : regular(quantum)),
      quiet,
    );
    expect(cushion.state.skipped).toBeGreaterThan(0.1);
    expect(cushion.state.fill).toBeLessThan(cushion.state.target + 2 * LIMITS.packet);
    expect(cushion.state.underruns).toBe(1);
    expect(cushion.state.dropped).toBe(0);
  });

  test("leaves out sound where it is quiet", () => {
    const cushion = new Cushion(RATE);
    const sound = (index: number) => (index % RATE < RATE / 2 ? 0.5 : 0);
    const heard = run(cushion, 30, (quantum) => (quantum === 300 ? 8 : regular(quantum)), sound);
    expect(cushion.state.skipped).toBeGreaterThan(0.1);
    // Every stretch of sound but the first and last is as long as it was.
    const lengths: number[] = [];
    let begin = -1;
    heard.forEach((sample, index) => {
      if (sample > 0.25 && begin < 0) begin = index;
      if (sample <= 0.25 && begin >= 0) {
        lengths.push(index - begin);
        begin = -1;
      }
    });
    for (const length of lengths.slice(1, -1)) expect(Math.abs(length - RATE / 2)).toBeLessThan(QUANTUM);
  });
});

test("jitter is learnt: in the end there are no underruns any more", () => {
  const cushion = new Cushion(RATE);
  // Two packets every 80 ms, and every second one of these pairs 60 ms late.
  const late = (quantum: number) => (quantum % 60 === 0 || quantum % 60 === 52 ? 2 : 0);
  run(cushion, 20, late);
  const before = cushion.state.underruns;
  expect(before).toBeGreaterThan(0);
  run(cushion, 8, late);
  expect(cushion.state.underruns).toBe(before);
});

test("the delay never grows without end", () => {
  const cushion = new Cushion(RATE);
  run(cushion, 20, (quantum) => (quantum % 12 === 0 ? 1 : 0)); // a quarter too much
  expect(cushion.state.fill).toBeLessThanOrEqual(LIMITS.overflow);
  expect(cushion.state.dropped + cushion.state.skipped).toBeGreaterThan(3);
  cushion.push(new Float32Array(60 * RATE)); // and a stopped device does not either
  expect(cushion.state.fill).toBeLessThanOrEqual(LIMITS.overflow + 2);
});

test("another conversation begins with nothing queued", () => {
  const cushion = new Cushion(RATE);
  run(cushion, 1, regular, () => 0.25);
  cushion.clear();
  const heard = run(cushion, 1, regular, () => 0.75);
  expect(heard.every((sample) => sample <= 0.75)).toBe(true);
  expect(heard.slice(RATE / 2).every((sample) => sample === 0.75)).toBe(true);
  expect(cushion.state.underruns).toBe(0);
});

test.each([16_000, 44_100, 96_000])("at %i Hz the lengths are the same", (rate) => {
  const cushion = new Cushion(rate);
  cushion.push(new Float32Array(rate * 0.079).fill(1));
  const output = new Float32Array(QUANTUM);
  cushion.pull(output);
  expect(output.every((sample) => sample === 0)).toBe(true);
  cushion.push(new Float32Array(rate * 0.002).fill(1));
  cushion.pull(output);
  expect(output.at(-1)).toBeGreaterThan(0.1);
});
