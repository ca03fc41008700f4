import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { checksum, GRANULE_RATE, isPlayable, join, OggReader, OggWriter, packetKind, packetSamples } from "../src/ogg";
import { decode, encodeAudio } from "../src/protocol";

/** A conversation between the published page (0) and the PyTorch server (1): direction, milliseconds, length, bytes. */
function recorded(): [number, Uint8Array][] {
  const data = readFileSync(new URL("../../tests/golden/wire/page_and_torch_server.bin", import.meta.url));
  const messages: [number, Uint8Array][] = [];
  for (let position = 0; position < data.length; ) {
    const length = data.readUInt32LE(position + 5);
    messages.push([data[position] as number, data.subarray(position + 9, position + 9 + length)]);
    position += 9 + length;
  }
  return messages;
}

function audio(direction: number): Uint8Array[] {
  return recorded().flatMap(([side, data]) => {
    const message = decode(data);
    return side === direction && message?.type === "audio" ? [message.data] : [];
  });
}

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** A packet of 40 ms of SILK, of any length. */
function packet(length: number, next: () => number): Uint8Array {
  const bytes = Uint8Array.from({ length }, () => Math.floor(next() * 256));
  bytes[0] = 2 << 3;
  return bytes;
}

describe("the recorded conversation", () => {
  test.each([
    [0, 2 * 593, 960],
    [1, 590, 1920],
  ])("side %i is read in full, however it is cut", (side, packets, samples) => {
    const pieces = audio(side);
    const [head, tags, ...rest] = pieces.flatMap(
      (
        (reader) => (piece) =>
          reader.feed(piece)
      )(new OggReader()),
    );
    expect([packetKind(head as Uint8Array), packetKind(tags as Uint8Array)]).toEqual(["head", "tags"]);
    expect(rest.length).toBe(packets);
    for (const each of rest) expect(packetSamples(each)).toBe(samples);
    const stream = join(pieces);
    const next = random(side + 1);
    const reader = new OggReader();
    const cut: Uint8Array[] = [];
    for (let position = 0; position < stream.length; ) {
      const length = 1 + Math.floor(next() * (position % 3 === 0 ? 3 : 700));
      cut.push(...reader.feed(stream.subarray(position, position + length)));
      position += length;
    }
    expect(cut).toEqual([head, tags, ...rest]);
  });

  test("its texts are the six digits, and its audio is written again as it was", () => {
    const texts: string[] = [];
    for (const [, data] of recorded()) {
      const message = decode(data);
      if (message?.type === "text") texts.push(message.text);
      if (message?.type === "audio") expect(encodeAudio(message.data)).toEqual(Uint8Array.from(data));
    }
    expect(texts).toEqual([" four", " one", " three", " eight", " nine", " zero"]);
  });
});

test("the checksum is that of the recorded pages", () => {
  const page = join(audio(1)).subarray(0, 27 + 1 + 19); // OpusHead has 19 bytes
  expect(checksum(page)).toBe(new DataView(page.buffer, page.byteOffset).getUint32(22, true));
  const damaged = page.slice();
  damaged[40] = (damaged[40] as number) ^ 1;
  expect(checksum(damaged)).not.toBe(checksum(page));
});

describe("what is written", () => {
  test.each([1, 254, 255, 256, 509, 510, 511, 4000])("packets of %i bytes come back", (length) => {
    const next = random(length);
    const packets = [packet(length, next), packet(length, next), packet(7, next)];
    const writer = new OggWriter(0xfedcba98, 24_000);
    const stream = join([writer.headers(), writer.audio(packets.slice(0, 2)), writer.audio(packets.slice(2))]);
    const [head, tags, ...rest] = new OggReader().feed(stream);
    expect(packetKind(head as Uint8Array)).toBe("head");
    expect(packetKind(tags as Uint8Array)).toBe("tags");
    expect(rest).toEqual(packets);
  });

  test("positions count at 48 kHz, and only the first page begins the stream", () => {
    const writer = new OggWriter(5, 24_000);
    const next = random(1);
    const pages = [
      writer.headers().subarray(0, 47),
      writer.audio([packet(50, next)]),
      writer.audio([packet(50, next)]),
    ];
    const fields = pages.map((page) => new DataView(page.buffer, page.byteOffset));
    expect(fields.map((page) => page.getBigUint64(6, true))).toEqual([0n, 1920n, 3840n]);
    expect(fields.map((page) => page.getUint32(18, true))).toEqual([0, 2, 3]);
    expect(fields.map((page) => page.getUint8(5))).toEqual([2, 0, 0]);
    expect(fields[0]?.getUint32(28 + 12, true)).toBe(24_000);
    expect(fields[0]?.getUint16(28 + 10, true)).toBe(0);
    expect(GRANULE_RATE * 0.04).toBe(1920);
  });
});

/** A page by hand, since the writer never splits a packet. */
function page(sequence: number, flags: number, lacing: number[], body: Uint8Array): Uint8Array {
  const bytes = join([new Uint8Array(27), Uint8Array.from(lacing), body]);
  bytes.set([0x4f, 0x67, 0x67, 0x53]);
  const fields = new DataView(bytes.buffer);
  fields.setUint8(5, flags);
  fields.setUint32(14, 9, true);
  fields.setUint32(18, sequence, true);
  fields.setUint8(26, lacing.length);
  fields.setUint32(22, checksum(bytes), true);
  return bytes;
}

describe("split and damaged streams", () => {
  const next = random(3);
  const long = packet(600, next);
  const short = packet(20, next);
  const first = page(0, 0, [20, 255, 255], join([short, long.subarray(0, 510)]));
  const second = page(1, 1, [90, 20], join([long.subarray(510), short]));

  test("what is damaged or does not come is counted, as long as what was before it", () => {
    const pages = Array.from({ length: 6 }, (_, index) => page(index, 0, [20, 20], join([short, short])));
    const spoilt = (pages[2] as Uint8Array).slice();
    spoilt[40] = (spoilt[40] as number) ^ 1;
    for (const [third, missing] of [
      [pages[2], 0],
      [spoilt, 1],
      [new Uint8Array(0), 1],
    ] as [Uint8Array, number][]) {
      const reader = new OggReader();
      const heard = reader.feed(join([pages[0] as Uint8Array, pages[1] as Uint8Array, third, ...pages.slice(3)]));
      expect(heard.length).toBe(2 * (6 - missing));
      expect(reader.missing).toBe(missing * 2 * packetSamples(short));
    }
    const reader = new OggReader();
    reader.feed(join([page(7, 0, [20], short), page(5, 0, [20], short), page(1 << 30, 0, [20], short)]));
    expect(reader.missing).toBe(0); // these numbers tell nothing
  });

  test("only streams that a decoder takes are playable", () => {
    const head = new OggReader().feed(new OggWriter(1, 24_000).headers())[0] as Uint8Array;
    const like = (channels: number, family: number, streams: number) => {
      const other = join([head, Uint8Array.of(streams, 0, 0, 1, 2, 3, 4, 5)]);
      other[9] = channels;
      other[18] = family;
      return other;
    };
    expect(isPlayable(head)).toBe(true);
    expect(isPlayable(like(2, 0, 9))).toBe(true);
    expect(isPlayable(like(2, 1, 1))).toBe(true);
    expect(isPlayable(like(6, 1, 4))).toBe(false);
    expect(isPlayable(like(3, 0, 1))).toBe(false);
    expect(isPlayable(head.subarray(0, 12))).toBe(false);
  });

  test("a packet goes on over pages", () => {
    expect(new OggReader().feed(join([first, second]))).toEqual([short, long, short]);
  });

  test("a packet whose other part is missing is left out, on either side", () => {
    expect(new OggReader().feed(second)).toEqual([short]);
    expect(new OggReader().feed(join([first, page(5, 1, [90, 20], join([long.subarray(510), short]))]))).toEqual([
      short,
      short,
    ]);
    expect(new OggReader().feed(join([first, page(1, 0, [20], short)]))).toEqual([short, short]);
  });

  test("noise between pages and a wrong checksum are passed over", () => {
    const broken = first.slice();
    broken[60] = (broken[60] as number) ^ 0xff;
    const noise = join([Uint8Array.from([0x4f, 0x67]), packet(300, next), Uint8Array.from([0x4f, 0x67, 0x67])]);
    const whole = page(7, 0, [20], short);
    expect(new OggReader().feed(join([noise, broken, noise, whole, whole]))).toEqual([short, short]);
  });
});

test("lengths of packets are those of RFC 6716", () => {
  const byConfiguration = [480, 960, 1920, 2880, 480, 960, 1920, 2880, 480, 960, 1920, 2880, 480, 960, 480, 960].concat(
    ...Array(4).fill([120, 240, 480, 960]),
  );
  byConfiguration.forEach((samples, configuration) => {
    expect(packetSamples(Uint8Array.of(configuration << 3))).toBe(samples);
    expect(packetSamples(Uint8Array.of((configuration << 3) | 1))).toBe(samples === 2880 ? 5760 : 2 * samples);
  });
  expect(packetSamples(Uint8Array.of(3, 4))).toBe(1920);
  expect(packetSamples(Uint8Array.of(3, 48))).toBe(0);
  expect(packetSamples(Uint8Array.of(3))).toBe(0);
  expect(packetSamples(new Uint8Array(0))).toBe(0);
});
