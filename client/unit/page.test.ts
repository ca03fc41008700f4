import { describe, expect, test } from "vitest";
import { Figures, level } from "../src/figures";
import { findVoice, NO_OFFER, readOffer, voicesAddress } from "../src/offer";
import { FIELDS, isValid, parameters, readSettings } from "../src/settings";
import { Calm, Speakers } from "../src/speakers";
import { Transcript } from "../src/transcript";
import { explain, isNotice, microphoneTrouble, refusal, type Trouble } from "../src/troubles";
import { Recording, toInt16, wavHeader } from "../src/wav";

describe("the recording", () => {
  test("has both voices, the user's on the left", async () => {
    const recording = new Recording(100, 1000);
    // Longer than one of its pieces.
    recording.append(new Float32Array(4000).fill(0.5), new Float32Array(4000).fill(-1));
    recording.append(Float32Array.of(0, 2), Float32Array.of(1, -2));
    const bytes = Buffer.from(await recording.toWav().arrayBuffer());
    expect(bytes.length).toBe(44 + 4 * 4002);
    expect(bytes.subarray(0, 44)).toEqual(Buffer.from(wavHeader(4002, 100)));
    expect([bytes.toString("latin1", 0, 4), bytes.readUInt32LE(4), bytes.toString("latin1", 8, 16)]).toEqual([
      "RIFF",
      bytes.length - 8,
      "WAVEfmt ",
    ]);
    expect([bytes.readUInt16LE(20), bytes.readUInt16LE(22), bytes.readUInt32LE(24)]).toEqual([1, 2, 100]);
    expect([bytes.readUInt32LE(28), bytes.readUInt16LE(32), bytes.readUInt16LE(34)]).toEqual([400, 4, 16]);
    expect([bytes.readInt16LE(44), bytes.readInt16LE(46)]).toEqual([toInt16(0.5), -32767]);
    expect([bytes.readInt16LE(44 + 4 * 3999), bytes.readInt16LE(44 + 4 * 3999 + 2)]).toEqual([toInt16(0.5), -32767]);
    expect([0, 2, 4, 6].map((offset) => bytes.readInt16LE(44 + 16_000 + offset))).toEqual([0, 32767, 32767, -32767]);
  });

  test("ends at its limit", async () => {
    const recording = new Recording(100, 2);
    recording.append(new Float32Array(150), new Float32Array(150));
    expect([recording.seconds, recording.full]).toEqual([1.5, false]);
    recording.append(new Float32Array(150), new Float32Array(150));
    recording.append(new Float32Array(150), new Float32Array(150));
    expect([recording.seconds, recording.full]).toEqual([2, true]);
    expect(recording.toWav().size).toBe(44 + 800);
  });
});

describe("the transcript", () => {
  test("makes lines at pauses and at new conversations", () => {
    const transcript = new Transcript();
    expect(transcript.beginsLine(1)).toBe(true);
    transcript.add(1, " four");
    transcript.add(1.5, " one");
    expect(transcript.beginsLine(2)).toBe(false);
    transcript.add(65, " three");
    transcript.renew(66);
    transcript.add(66.1, " eight");
    expect(transcript.toText()).toBe("0:01  four one\n1:05  three\n1:06  — a new conversation —\n1:06  eight\n");
  });
});

describe("where the user spoke", () => {
  test("is marked once until Moshi's next words, and Moshi's line goes on", () => {
    const transcript = new Transcript();
    expect([transcript.markYou(0.5), transcript.markYou(1.5)]).toEqual([true, false]);
    transcript.add(3, " four");
    expect(transcript.markYou(3.5)).toBe(true);
    expect(transcript.beginsLine(4)).toBe(false);
    transcript.add(4, " one");
    expect([transcript.markYou(5), transcript.beginsLine(7)]).toEqual([true, true]);
    transcript.add(7, " three");
    expect(transcript.toText()).toBe(
      "0:00  — you spoke —\n0:03  four one\n0:03  — you spoke —\n0:05  — you spoke —\n0:07  three\n",
    );
  });
});

describe("what the user said, where the server tells it", () => {
  test("takes the place of the mark, and Moshi's answer is a line of its own", () => {
    const transcript = new Transcript();
    expect(transcript.markYou(0.5)).toBe(true);
    expect(transcript.hear(1, "four")).toEqual(["four", false]);
    expect(transcript.markYou(1.2)).toBe(false);
    expect(transcript.hear(1.5, "one")).toEqual(["four one", false]);
    transcript.endTurn();
    transcript.add(2, " two");
    expect(transcript.hear(2.5, "three")).toEqual(["three", true]); // too soft for a mark
    expect(transcript.beginsLine(3)).toBe(true);
    transcript.add(3, " six");
    transcript.renew(4);
    expect(transcript.hear(5, "nine")).toEqual(["nine", true]);
    expect(transcript.toText()).toBe(
      "0:00  — you: four one —\n0:02  two\n0:02  — you: three —\n0:03  six\n0:04  — a new conversation —\n0:05  — you: nine —\n",
    );
  });

  test("is marked again in the next turn, also if nobody has answered", () => {
    const transcript = new Transcript();
    expect([transcript.markYou(1), transcript.hear(1, "four")[1]]).toEqual([true, false]);
    transcript.endTurn();
    expect([transcript.markYou(5), transcript.hear(6, "one")]).toEqual([true, ["one", false]]);
  });
});

describe("a tool that is called", () => {
  test("is a line of its own", () => {
    const transcript = new Transcript();
    transcript.add(1, " let me see");
    transcript.call(2, "add {}: 5");
    expect(transcript.beginsLine(2.1)).toBe(true);
    transcript.add(2.1, " five");
    expect(transcript.toText()).toBe("0:01  let me see\n0:02  — add {}: 5 —\n0:02  five\n");
  });
});

describe("who speaks", () => {
  /** The states after each stretch of levels [you, moshi, seconds], heard 10 ms at a time; and how often they changed. */
  function hear(stretches: [number, number, number][]) {
    const speakers = new Speakers();
    let changes = 0;
    let begun = 0;
    const states = stretches.map(([you, moshi, seconds]) => {
      for (let piece = 0; piece < Math.round(seconds * 100); piece++) {
        const before = speakers.speaking;
        if (speakers.hear(you, moshi, 0.01)) begun++;
        if (speakers.speaking !== before) changes++;
      }
      return speakers.speaking;
    });
    return { states, changes, begun };
  }

  test("is you, Moshi, both, or nobody", () => {
    const { states, begun } = hear([
      [0, 0, 1],
      [0.5, 0, 1],
      [0.5, 0.6, 1],
      [0, 0.6, 1],
      [0, 0, 1],
    ]);
    expect(states).toEqual(["nobody", "you", "both", "moshi", "nobody"]);
    expect(begun).toBe(1);
  });

  test("does not flicker: not by clicks, by pauses between words, or by levels about the limit", () => {
    const click: [number, number, number][] = Array(20)
      .fill([
        [0.9, 0.9, 0.03],
        [0, 0, 0.2],
      ])
      .flat();
    expect(hear(click).changes).toBe(0);
    const words: [number, number, number][] = Array(20)
      .fill([
        [0.6, 0, 0.3],
        [0, 0, 0.4],
      ])
      .flat();
    expect(hear(words)).toMatchObject({ changes: 1, begun: 1 });
    const about: [number, number, number][] = Array(20)
      .fill([
        [0.21, 0, 0.3],
        [0.12, 0, 0.9],
      ])
      .flat();
    expect(hear(about).changes).toBe(1);
  });

  test("is told to a screen reader when it has lasted, and not too often", () => {
    const calm = new Calm();
    expect([calm.next("nobody", 0), calm.next("nobody", 0.9), calm.next("nobody", 1)]).toEqual([null, null, "nobody"]);
    // It changes too fast to be told.
    for (let now = 2; now < 10; now += 0.5) expect(calm.next(now % 1 ? "you" : "moshi", now)).toBe("nobody");
    expect([calm.next("both", 10), calm.next("both", 11)]).toEqual(["nobody", "both"]);
    expect([calm.next("you", 12), calm.next("you", 13), calm.next("you", 15.9)]).toEqual(["both", "both", "both"]);
    expect(calm.next("you", 16)).toBe("you");
  });
});

describe("what the server offers", () => {
  test("is read, and anything else is no offer", () => {
    const told = { prompt: true, voices: ["Anna", "NATF0"], voice: "Anna", models: ["a", "b"], model: "b" };
    const offer = { ...told, sampling: true };
    expect([readOffer(told), readOffer(offer)]).toEqual([offer, offer]);
    const { models, model, ...older } = offer; // of a server that lists no models
    expect(readOffer(older)).toEqual({ ...older, models: [], model: "" });
    expect(readOffer({ ...offer, models: ["a", 3], model: 4 })).toEqual({ ...offer, models: ["a"], model: "" });
    expect(readOffer({ ...offer, sampling: false })).toEqual({ ...offer, sampling: false });
    expect(readOffer({ prompt: 1, voices: ["a", 2], voice: null })).toEqual({ ...NO_OFFER, voices: ["a"] });
    expect([null, "x", 3, [], {}].map(readOffer)).toEqual(Array(5).fill(NO_OFFER));
  });

  test("is asked for beside the conversation, with its token", () => {
    const address = (page: string, token: string | null) => voicesAddress(new URL(page), token).href;
    expect(address("https://h:9/base/?text_topk=3#x", "a b")).toBe("https://h:9/base/api/voices?worker_auth_id=a+b");
    expect(address("http://h/?worker_addr=other:8998", null)).toBe("http://other:8998/api/voices");
    expect(voicesAddress(new URL("http://h/"), null, "a b").href).toBe("http://h/api/voices?model=a+b");
  });

  test("has a voice also by the name of its file", () => {
    expect(["NATF0", "NATF0.pt", "NATF", "natf0", "NATF0.pt.pt", ""].map((name) => findVoice(["NATF0"], name))).toEqual(
      ["NATF0", "NATF0", null, null, null, null],
    );
  });
});

describe("settings", () => {
  const page = new URLSearchParams(
    "text_temperature=0&audio_topk=x&max_steps=10&email=&imageUrl=a.png&worker_addr=h:1&worker_auth_id=no&stats=0",
  );

  test("of the address come before stored ones, and wrong ones count for nothing", () => {
    const stored = '{"text_temperature":"0.5","audio_topk":"7","text_seed":"1.5","unknown":"1"}';
    expect(readSettings(stored, page)).toEqual({ text_temperature: "0", audio_topk: "7" });
    expect(readSettings("no JSON", new URLSearchParams())).toEqual({});
    expect(readSettings("null", new URLSearchParams())).toEqual({});
  });

  test("become parameters, with what is only handed on: all that is not for the page", () => {
    expect(parameters({ text_seed: "3" }, page, "secret")).toEqual({
      text_seed: "3",
      stats: "1",
      max_steps: "10",
      imageUrl: "a.png",
      worker_auth_id: "secret",
    });
    expect(parameters({}, new URLSearchParams(), null)).toEqual({ stats: "1" });
  });

  test("have a voice and a role, of the length that servers take", () => {
    const stored = JSON.stringify({ voice_prompt: "Anna", text_prompt: "x".repeat(1001), text_topk: "3" });
    expect(readSettings(stored, new URLSearchParams())).toEqual({ text_topk: "3", voice_prompt: "Anna" });
    const chosen = readSettings(stored, new URLSearchParams("voice_prompt=NATF0.pt&text_prompt=next"));
    expect(chosen).toEqual({ text_topk: "3", voice_prompt: "NATF0.pt", text_prompt: "next" });
    expect(parameters(chosen, new URLSearchParams("voice_prompt=NATF0.pt"), null)).toEqual({ ...chosen, stats: "1" });
  });

  test("are checked", () => {
    const [temperature, topk] = FIELDS as [(typeof FIELDS)[0], (typeof FIELDS)[0]];
    expect(["", "0", "0.7", "-1", "a", " ", "9"].map((text) => isValid(temperature, text))).toEqual([
      true,
      true,
      true,
      false,
      false,
      false,
      false,
    ]);
    expect(["250", "2.5"].map((text) => isValid(topk, text))).toEqual([true, false]);
  });
});

describe("troubles", () => {
  const all: Trouble[] = [
    { cause: "insecure", host: "box", port: "9998" },
    { cause: "unsupported" },
    { cause: "incomplete" },
    { cause: "permission" },
    { cause: "no-microphone" },
    { cause: "microphone-busy" },
    { cause: "microphone-gone" },
    { cause: "sound", detail: "x" },
    { cause: "sound-stopped" },
    { cause: "waiting", place: 3 },
    { cause: "token" },
    { cause: "refused", detail: "" },
    { cause: "unready", detail: "The model is not loaded yet.", seconds: 2 },
    { cause: "unreachable", seconds: 2 },
    { cause: "no-websocket", seconds: 2 },
    { cause: "foreign", page: "http://localhost:5173" },
    { cause: "lost", seconds: 0.5 },
    { cause: "silent", seconds: 8 },
    { cause: "renewed" },
    { cause: "ignored", names: ["voice_prompt", "text_prompt"] },
    { cause: "told", detail: "The model does not know all letters of the role." },
    { cause: "server", detail: "<html>" },
    { cause: "ended" },
    { cause: "slow" },
    { cause: "full", hours: 2 },
  ];

  test.each(all)("$cause has its own whole sentence", (trouble) => {
    const sentence = explain(trouble);
    expect(sentence).toMatch(/^[A-Z].*[.…]$/);
    expect(sentence).not.toMatch(/undefined|NaN|<|\n/);
    expect(all.filter((other) => explain(other) === sentence)).toEqual([trouble]);
  });

  test("say what is to be known", () => {
    expect(explain({ cause: "insecure", host: "box", port: "9998" })).toContain(
      "--ssl FOLDER and open https://box:9998/",
    );
    expect(explain({ cause: "insecure", host: "box", port: "" })).toContain("https://box/");
    expect(explain({ cause: "waiting", place: 1 })).toContain("next in line");
    expect(explain({ cause: "waiting", place: 3 })).toContain("number 3");
    expect(explain({ cause: "server", detail: "Too many steps" })).toBe("Too many steps.");
    expect(isNotice({ cause: "waiting", place: 1 })).toBe(true);
    expect(isNotice({ cause: "permission" })).toBe(false);
  });

  test.each([
    ["NotAllowedError", "permission"],
    ["NotFoundError", "no-microphone"],
    ["OverconstrainedError", "no-microphone"],
    ["NotReadableError", "microphone-busy"],
    ["TypeError", "sound"],
  ])("%s of the microphone", (name, cause) => {
    expect(microphoneTrouble(new DOMException("message", name)).cause).toBe(cause);
  });

  test("answers to the plain request", () => {
    expect(refusal(401, "No.", 1)).toEqual({ cause: "token" });
    expect(refusal(403, "The page comes from elsewhere.", 1)).toEqual({
      cause: "refused",
      detail: "The page comes from elsewhere.",
    });
    expect(refusal(426, "", 1)).toEqual({ cause: "no-websocket", seconds: 1 });
    expect(refusal(405, "", 1)).toEqual({ cause: "no-websocket", seconds: 1 });
    expect(refusal(502, "<html>", 2)).toEqual({ cause: "unreachable", seconds: 2 });
    expect(refusal(503, "The model is not loaded yet.", 2)).toEqual({
      cause: "unready",
      detail: "The model is not loaded yet.",
      seconds: 2,
    });
  });
});

describe("figures", () => {
  const report = (step: number, dropped = 0) => ({ step_p50_ms: step, step_p95_ms: step + 10, dropped_s: dropped });

  test("the delay is what is out and what is queued, without what was dropped", () => {
    const figures = new Figures();
    figures.sent = 10;
    figures.received = 9;
    expect(figures.delay(0.2)).toBeCloseTo(1.2);
    figures.update(report(30, 0.6));
    expect(figures.delay(0.2)).toBeCloseTo(0.6);
  });

  test("a server is too slow after three reports, and fast enough after three others", () => {
    const figures = new Figures();
    const seen = [30, 90, 90, 30, 90, 90, 90, 30, 30, 30].map((step) => {
      figures.update(report(step));
      return figures.slow;
    });
    expect(seen).toEqual([false, false, false, false, false, false, true, true, true, false]);
  });

  test("losses with steps at the limit count as too slow, too", () => {
    const figures = new Figures();
    for (const dropped of [0.1, 0.2, 0.3]) figures.update(report(75, dropped));
    expect(figures.slow).toBe(true);
  });

  test("shows delay and losses only when they matter", () => {
    const figures = new Figures();
    figures.sent = 0.3;
    expect(figures.notice(0, 0.1, 0)).toBe("");
    figures.sent = 1;
    expect(figures.notice(1, 0.1, 0)).toBe("delay 1.1 s");
    figures.unsent = 0.25;
    expect(figures.notice(2, 0, 0.5)).toBe("delay 1.0 s · lost 0.8 s");
    figures.damaged = 0.1;
    expect(figures.notice(20, 0, 0.4)).toBe("delay 1.0 s · lost 0.8 s");
    figures.damaged = 0;
    figures.received = 1;
    expect(figures.notice(21, 0, 0.5)).toBe("lost 0.8 s");
    expect(figures.notice(23, 0, 0.5)).toBe("");
  });

  test("a meter has 50 dB", () => {
    expect(level(new Float32Array(10))).toBe(0);
    expect(level(new Float32Array(10).fill(1))).toBe(1);
    expect(level(new Float32Array(10).fill(10 ** (-25 / 20)))).toBeCloseTo(0.5);
    expect(level(new Float32Array(10).fill(0.001))).toBe(0);
  });
});
