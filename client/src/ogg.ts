// Ogg pages of Opus (RFC 3533, RFC 7845), as pure code: bytes to packets, and packets to bytes.

/** Ogg counts Opus's sound at this rate, whatever rate it was recorded at. */
export const GRANULE_RATE = 48_000;

const HEADER = 27;
const CAPTURE = [0x4f, 0x67, 0x67, 0x53] as const; // "OggS"
const CONTINUED = 1;
const FIRST = 2;
// No Opus packet of a conversation is nearly that long; a longer one is damage.
const MAX_PACKET = 1 << 16;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index << 24;
  for (let bit = 0; bit < 8; bit++) value = value & 0x80000000 ? (value << 1) ^ 0x04c11db7 : value << 1;
  return value >>> 0;
});

/** A page's checksum; the four bytes where it stands count as zero. */
export function checksum(page: Uint8Array): number {
  let crc = 0;
  for (let index = 0; index < page.length; index++) {
    const byte = index >= 22 && index < 26 ? 0 : (page[index] as number);
    crc = (crc << 8) ^ (CRC_TABLE[(crc >>> 24) ^ byte] as number);
  }
  return crc >>> 0;
}

export type PacketKind = "head" | "tags" | "audio";

export function packetKind(packet: Uint8Array): PacketKind {
  const name = String.fromCharCode(...packet.subarray(0, 8));
  return name === "OpusHead" ? "head" : name === "OpusTags" ? "tags" : "audio";
}

// The samples of an Opus frame at 48 kHz by the configuration in the first byte (RFC 6716, table 2): SILK, hybrid, CELT.
const SILK = [480, 960, 1920, 2880];
const FRAME_SAMPLES = [...SILK, ...SILK, ...SILK, 480, 960, 480, 960, ...Array(4).fill([120, 240, 480, 960]).flat()];

/** The length of an Opus packet in samples at 48 kHz; 0 if it must not be decoded. */
export function packetSamples(packet: Uint8Array): number {
  const [toc, count] = packet;
  if (toc === undefined) return 0;
  const code = toc & 3;
  if (code === 3 && count === undefined) return 0;
  const frames = code === 3 ? (count as number) & 63 : code === 0 ? 1 : 2;
  const samples = frames * (FRAME_SAMPLES[toc >> 3] as number);
  return samples <= 5760 ? samples : 0;
}

/** Whether one decoder can decode a stream with this OpusHead: it must be a single stream of one or two channels. */
export function isPlayable(head: Uint8Array): boolean {
  const [version, channels] = head.subarray(8, 10);
  const family = head[18];
  if (version === undefined || version >> 4 !== 0 || family === undefined) return false;
  return family === 0 ? channels === 1 || channels === 2 : head[19] === 1;
}

// The most pages that may be missing at once. With more, the sender numbers pages in another way, and nothing was lost.
const MOST_MISSING = 1000;

/** Finds the packets in a stream of bytes, in pieces of any size. Damaged pages are skipped and counted. */
export class OggReader {
  /** The sound on missing or damaged pages, in samples at 48 kHz. Such a page counts as long as the one before. */
  missing = 0;
  #usual = 0; // samples on the page before
  #buffer = new Uint8Array(0);
  #partial: Uint8Array | null = null; // the beginning of a packet that continues on the next page
  #serial = -1;
  #sequence = -1;

  /** Takes bytes, and returns the packets that they complete, headers included. */
  feed(bytes: Uint8Array): Uint8Array[] {
    const data = join([this.#buffer, bytes]);
    const packets: Uint8Array[] = [];
    let position = 0;
    for (;;) {
      position = findCapture(data, position);
      const size = pageSize(data, position);
      if (size === null) break;
      const page = data.subarray(position, position + size);
      if (size > 0 && checksum(page) === view(page).getUint32(22, true)) {
        this.#read(page, packets);
        position += size;
      } else {
        position += CAPTURE.length;
      }
    }
    this.#buffer = data.slice(position);
    return packets;
  }

  #read(page: Uint8Array, packets: Uint8Array[]): void {
    const fields = view(page);
    const continued = ((page[5] as number) & CONTINUED) !== 0;
    const serial = fields.getUint32(14, true);
    const sequence = fields.getUint32(18, true);
    const gap = (sequence - this.#sequence - 1) >>> 0;
    const follows = serial === this.#serial && gap === 0;
    if (serial === this.#serial && gap < MOST_MISSING) this.missing += gap * this.#usual;
    const before = packets.length;
    let packet = continued && follows ? this.#partial : continued ? null : new Uint8Array(0);
    this.#serial = serial;
    this.#sequence = sequence;
    const count = page[26] as number;
    let position = HEADER + count;
    let open = false;
    for (let index = 0; index < count; index++) {
      const length = page[HEADER + index] as number;
      if (packet) packet = join([packet, page.subarray(position, position + length)]);
      if (packet && packet.length > MAX_PACKET) packet = null;
      position += length;
      open = length === 255;
      if (!open) {
        if (packet && packet.length > 0) packets.push(packet);
        packet = new Uint8Array(0);
      }
    }
    this.#partial = open ? packet : null;
    const sound = packets.slice(before).filter((each) => packetKind(each) === "audio");
    this.#usual = sound.reduce((sum, each) => sum + packetSamples(each), 0);
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function join(parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let position = 0;
  for (const part of parts) {
    joined.set(part, position);
    position += part.length;
  }
  return joined;
}

/** Where the next page may begin: at a capture pattern, or at what may become one. */
function findCapture(data: Uint8Array, from: number): number {
  let position = from;
  while (position < data.length) {
    if (CAPTURE.every((byte, index) => position + index >= data.length || data[position + index] === byte)) break;
    position++;
  }
  return position;
}

/** The length of the page at a capture pattern; 0 if it is not a page, null if more bytes must come first. */
function pageSize(data: Uint8Array, position: number): number | null {
  if (data.length > position + 4 && data[position + 4] !== 0) return 0;
  const count = data[position + 26];
  if (count === undefined || data.length < position + HEADER + count) return null;
  const lengths = data.subarray(position + HEADER, position + HEADER + count);
  const size = lengths.reduce((sum, length) => sum + length, HEADER + count);
  return data.length < position + size ? null : size;
}

/** Writes one logical stream of mono Opus. */
export class OggWriter {
  #sequence = 0;
  #granule = 0n;

  constructor(
    private readonly serial: number,
    private readonly sampleRate: number,
  ) {}

  /** The two pages that begin the stream. The pre-skip is 0: as many samples come out as went in. */
  headers(): Uint8Array<ArrayBuffer> {
    const head = new Uint8Array(19);
    head.set(ascii("OpusHead"));
    head[8] = 1; // the version of the mapping
    head[9] = 1; // channels
    view(head).setUint32(12, this.sampleRate, true);
    const vendor = ascii("msh");
    const tags = new Uint8Array(16 + vendor.length);
    tags.set(ascii("OpusTags"));
    view(tags).setUint32(8, vendor.length, true);
    tags.set(vendor, 12);
    return join([this.#page([head], FIRST), this.#page([tags], 0)]);
  }

  /** A page of whole packets. Their lengths must fit into one page's table: 40 ms have a few hundred bytes. */
  audio(packets: Uint8Array[]): Uint8Array<ArrayBuffer> {
    for (const packet of packets) this.#granule += BigInt(packetSamples(packet));
    return this.#page(packets, 0);
  }

  #page(packets: Uint8Array[], flags: number): Uint8Array<ArrayBuffer> {
    const lacing = packets.flatMap(({ length }) => [...Array(Math.floor(length / 255)).fill(255), length % 255]);
    if (lacing.length > 255) throw new RangeError("The packets do not fit into a page.");
    const header = new Uint8Array(HEADER + lacing.length);
    const fields = view(header);
    header.set(CAPTURE);
    header[5] = flags;
    fields.setBigUint64(6, this.#granule, true);
    fields.setUint32(14, this.serial, true);
    fields.setUint32(18, this.#sequence++, true);
    header[26] = lacing.length;
    header.set(lacing, HEADER);
    const page = join([header, ...packets]);
    view(page).setUint32(22, checksum(page), true);
    return page;
  }
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}
