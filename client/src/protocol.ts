// The messages of /api/chat and its address, as pure code.

export const SAMPLE_RATE = 24_000;
/** The samples of an Opus packet that the page sends: 40 ms. */
export const PACKET_SAMPLES = 960;

export const CONTROLS = { start: 0, endTurn: 1, pause: 2, restart: 3 } as const;
export type Control = keyof typeof CONTROLS;

export type Message =
  | { type: "handshake"; protocol: number; model: number }
  | { type: "audio"; data: Uint8Array }
  | { type: "text"; text: string }
  | { type: "metadata"; values: Record<string, unknown> }
  | { type: "error"; text: string }
  | { type: "ping" };

const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** Reads a binary message. Returns null for one to ignore: empty, unknown, useless to a client, or damaged. */
export function decode(data: Uint8Array): Message | null {
  const payload = data.subarray(1);
  try {
    switch (data[0]) {
      case 0: {
        const fields = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
        if (payload.length === 2) return { type: "handshake", protocol: fields.getUint8(0), model: fields.getUint8(1) };
        if (payload.length < 8) return { type: "handshake", protocol: 0, model: 0 };
        return { type: "handshake", protocol: fields.getUint32(0, true), model: fields.getUint32(4, true) };
      }
      case 1:
        return { type: "audio", data: payload };
      case 2:
        return { type: "text", text: UTF8.decode(payload) };
      case 4: {
        const values: unknown = JSON.parse(UTF8.decode(payload));
        if (typeof values !== "object" || values === null || Array.isArray(values)) return null;
        return { type: "metadata", values: values as Record<string, unknown> };
      }
      case 5:
        return { type: "error", text: UTF8.decode(payload) };
      case 6:
        return { type: "ping" };
      case 7: // the colour is for other models
        return payload.length > 0 ? { type: "text", text: UTF8.decode(payload.subarray(1)) } : null;
      default:
        return null;
    }
  } catch {
    return null;
  }
}

export function encodeAudio(pages: Uint8Array): Uint8Array<ArrayBuffer> {
  const message = new Uint8Array(1 + pages.length);
  message[0] = 1;
  message.set(pages, 1);
  return message;
}

export function encodeControl(control: Control): Uint8Array<ArrayBuffer> {
  return Uint8Array.of(3, CONTROLS[control]);
}

export function encodePing(): Uint8Array<ArrayBuffer> {
  return Uint8Array.of(6);
}

/** The address of the conversation for a page's own address. */
export function chatAddress(page: URL, parameters: Record<string, string>): URL {
  const worker = page.searchParams.get("worker_addr") ?? "";
  const secure = page.protocol === "https:";
  const address =
    worker === "" || worker === "same"
      ? new URL("api/chat", page)
      : new URL(`${secure ? "https" : "http"}://${worker}/api/chat`);
  address.protocol = secure ? "wss:" : "ws:";
  address.search = new URLSearchParams(parameters).toString();
  address.hash = "";
  return address;
}

/** The same address for a plain request, whose answer tells in words what a websocket cannot. */
export function plainAddress(address: URL): URL {
  const plain = new URL(address);
  plain.protocol = address.protocol === "wss:" ? "https:" : "http:";
  return plain;
}

/** Takes the token out of a page's address. Returns the token, and the address without it. */
export function takeToken(page: URL): { token: string | null; rest: URL } {
  const rest = new URL(page);
  const fragment = new URLSearchParams(rest.hash.slice(1));
  const token = fragment.get("worker_auth_id") ?? rest.searchParams.get("worker_auth_id");
  if (token !== null) {
    fragment.delete("worker_auth_id");
    rest.searchParams.delete("worker_auth_id");
    rest.hash = fragment.toString();
  }
  return { token: token || null, rest };
}
