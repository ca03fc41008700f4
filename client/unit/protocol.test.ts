import { describe, expect, test } from "vitest";
import { chatAddress, decode, encodeControl, encodePing, plainAddress, takeToken } from "../src/protocol";

const bytes = (type: number, text = "") => Uint8Array.of(type, ...new TextEncoder().encode(text));

describe("messages", () => {
  test("a handshake may have any length", () => {
    expect(decode(Uint8Array.of(0))).toEqual({ type: "handshake", protocol: 0, model: 0 });
    expect(decode(Uint8Array.of(0, 1, 2))).toEqual({ type: "handshake", protocol: 1, model: 2 });
    const nine = Uint8Array.of(0, 1, 0, 0, 0, 2, 1, 0, 0);
    expect(decode(nine)).toEqual({ type: "handshake", protocol: 1, model: 258 });
  });

  test("a message that lies inside a larger buffer is read at its place", () => {
    const nine = Uint8Array.of(9, 9, 0, 1, 0, 0, 0, 2, 0, 0, 0).subarray(2);
    expect(decode(nine)).toEqual({ type: "handshake", protocol: 1, model: 2 });
  });

  test("texts, metadata, errors, pings", () => {
    expect(decode(bytes(2, " été"))).toEqual({ type: "text", text: " été" });
    expect(decode(bytes(7, "\u0003 red"))).toEqual({ type: "text", text: " red" });
    expect(decode(bytes(4, '{"waiting":2}'))).toEqual({ type: "metadata", values: { waiting: 2 } });
    expect(decode(bytes(5, "No."))).toEqual({ type: "error", text: "No." });
    expect(decode(bytes(6))).toEqual({ type: "ping" });
  });

  test.each([
    ["empty", new Uint8Array(0)],
    ["of unknown type", bytes(8, "x")],
    ["a control, which clients send", bytes(3, "\u0003")],
    ["no JSON", bytes(4, "{")],
    ["no object", bytes(4, "[1]")],
    ["no UTF-8", Uint8Array.of(2, 0xff)],
    ["a colour without text", bytes(7)],
  ])("what is %s is discarded", (_, data) => {
    expect(decode(data)).toBeNull();
  });

  test("what is sent", () => {
    expect(encodeControl("restart")).toEqual(Uint8Array.of(3, 3));
    expect(encodeControl("pause")).toEqual(Uint8Array.of(3, 2));
    expect(encodePing()).toEqual(Uint8Array.of(6));
  });
});

describe("the address", () => {
  test.each([
    ["http://localhost:9998/", "ws://localhost:9998/api/chat"],
    ["https://host/moshi/?worker_addr=same#x", "wss://host/moshi/api/chat"],
    ["http://localhost:5173/?worker_addr=10.0.0.7:8998", "ws://10.0.0.7:8998/api/chat"],
    ["https://host/?worker_addr=other:1", "wss://other:1/api/chat"],
  ])("of a page at %s", (page, chat) => {
    expect(chatAddress(new URL(page), {}).href).toBe(chat);
  });

  test("carries the parameters", () => {
    const address = chatAddress(new URL("http://localhost:1/"), { text_temperature: "0", worker_auth_id: "a b" });
    expect(address.search).toBe("?text_temperature=0&worker_auth_id=a+b");
    expect(plainAddress(address).href).toBe("http://localhost:1/api/chat?text_temperature=0&worker_auth_id=a+b");
    expect(plainAddress(new URL("wss://h/api/chat")).href).toBe("https://h/api/chat");
  });

  test.each([
    ["https://h/?a=1#worker_auth_id=s3", "s3", "https://h/?a=1"],
    ["https://h/?worker_auth_id=s3&a=1", "s3", "https://h/?a=1"],
    ["https://h/?a=1#part", null, "https://h/?a=1#part"],
  ])("%s loses its token", (page, token, rest) => {
    const taken = takeToken(new URL(page));
    expect([taken.token, taken.rest.href]).toEqual([token, rest]);
  });
});
