// The page: the user's actions, and what is shown.

import { microphones } from "./audio";
import { Conversation, type Phase } from "./conversation";
import { askOffer, findVoice, NO_OFFER } from "./offer";
import { chooseCodec } from "./opus/choose";
import { chatAddress, takeToken } from "./protocol";
import { FIELDS, isValid, PERSONA_LENGTH, parameters, readSettings, type Settings } from "./settings";
import { Calm } from "./speakers";
import { explain, isNotice, type Trouble } from "./troubles";
import * as view from "./view";

const { elements } = view;
const NEWS_SHOWN_MS = 15_000;
// Often enough to look alive. Every picture costs power, and the sound needs the processor more.
const METERS_SHOWN_MS = 60;
const METERS_TOLD_MS = 500;

const SENTENCES: Record<Phase, string> = {
  microphone: "Waiting for the microphone: the browser may ask for permission.",
  connecting: "Connecting…",
  waiting: "Waiting in line…",
  talking: "Moshi listens: say something.",
  reconnecting: "Connecting again…",
  stopped: "The sound has stopped.",
  over: "Press the button and talk.",
};
const MUTED = "Muted: Moshi hears silence.";

// The page also works where the browser refuses storage, for instance in a private window.
const store = {
  get(name: string): string | null {
    try {
      return localStorage.getItem(name) ?? sessionStorage.getItem(name);
    } catch {
      return null;
    }
  },
  set(name: string, value: string, kind: "local" | "session" = "local"): void {
    try {
      (kind === "local" ? localStorage : sessionStorage).setItem(name, value);
    } catch {
      // Then it lasts as long as the page.
    }
  },
};

const { token: given, rest } = takeToken(new URL(location.href));
if (given !== null) {
  store.set("token", given, "session");
  history.replaceState(null, "", rest);
}
let token = given ?? store.get("token");
let settings: Settings = readSettings(store.get("settings"), rest.searchParams);
let settingsUsed = settings; // by the present connection
let microphone = store.get("microphone") ?? "";
let offer = NO_OFFER; // of the server, as last asked
let muted = false;
let resumed = false; // the user has asked for the sound to go on; the next press ends the conversation
let conversation: Conversation | null = null; // the last one, even when it is over: it can still be saved
let trouble: Trouble | null = null;
let wakeLock: WakeLockSentinel | null = null;

function unable(): Trouble | null {
  if (!window.isSecureContext) return { cause: "insecure", host: location.hostname, port: location.port };
  if (typeof AudioWorkletNode === "undefined" || typeof WebAssembly === "undefined") return { cause: "unsupported" };
  if (!navigator.mediaDevices) return { cause: "no-microphone" };
  return null;
}

// Try the codecs before the first press, so that nothing is left to wait for.
const codec = unable() ? null : chooseCodec();

function isOn(): boolean {
  return conversation !== null && conversation.phase !== "over";
}

function showTrouble(next: Trouble | null): void {
  trouble = next;
  view.showTrouble(next ? explain(next) : "", next !== null && isNotice(next));
  elements.token.hidden = next?.cause !== "token";
  if (next?.cause === "token") elements.tokenValue.focus();
  if (next?.cause === "renewed" || next?.cause === "ignored" || next?.cause === "told") {
    setTimeout(() => {
      if (trouble === next) showTrouble(null);
    }, NEWS_SHOWN_MS);
  }
}

function showPhase(): void {
  const phase = conversation?.phase ?? "over";
  if (phase !== "stopped") resumed = false;
  const talking = phase === "talking";
  const on = phase !== "over";
  view.showPhase(
    talking ? "talking" : phase === "stopped" ? "stopped" : on ? "busy" : "idle",
    phase === "stopped" && !resumed ? "Resume" : on ? "End" : "Talk",
    talking && muted ? MUTED : SENTENCES[phase],
  );
  elements.mute.disabled = !on;
  elements.restart.disabled = !talking;
  const saveable = talking || (conversation !== null && conversation.recording.seconds > 0);
  elements.saveSound.disabled = !saveable;
  elements.saveText.disabled = !saveable;
  elements.saveJson.disabled = !saveable;
  void keepAwake(on);
}

/** A phone whose screen goes dark stops the microphone. */
async function keepAwake(awake: boolean): Promise<void> {
  try {
    if (!awake) {
      await wakeLock?.release();
      wakeLock = null;
    } else if (!wakeLock || wakeLock.released) {
      wakeLock = await navigator.wakeLock.request("screen");
    }
  } catch {
    // Not every browser has it, and a browser may refuse it.
  }
}

function address(): URL {
  settingsUsed = settings;
  return chatAddress(rest, parameters(settings, rest.searchParams, token));
}

function start(): void {
  const cause = unable();
  if (cause || !codec) {
    showTrouble(cause);
    return;
  }
  showTrouble(null);
  view.clearTranscript();
  const started: Conversation = new Conversation(
    { microphone, volume: Number(elements.volume.value) / 100, muted, address, codec },
    {
      onPhase: () => {
        if (started === conversation) showPhase();
      },
      onTrouble: (next) => {
        // A trouble that ended the conversation stays on the screen.
        if (started === conversation) showTrouble(next);
      },
      onText: view.addText,
      onYou: view.addYou,
      onHeard: view.addHeard,
      onTool: view.addTool,
      onRenewed: view.addRenewed,
      onMicrophones: () => void listMicrophones(),
    },
  );
  conversation = started;
  calm = new Calm();
  showPhase();
  requestAnimationFrame(draw);
}

function end(): void {
  conversation?.close();
  if (trouble && !(trouble.cause === "full")) showTrouble(null);
}

let calm = new Calm();
let shown = 0;
let told = 0;

function draw(now: number): void {
  if (!conversation) return;
  if (!isOn()) {
    view.showLevels({ you: 0, moshi: 0 }, true);
    view.showSpeaking(null, null);
    view.showFigures("");
    return;
  }
  requestAnimationFrame(draw);
  if (now - shown < METERS_SHOWN_MS) return;
  shown = now;
  const tell = now - told >= METERS_TOLD_MS;
  view.showLevels(conversation.levels, tell);
  const speaking = conversation.phase === "talking" ? conversation.speaking : null;
  view.showSpeaking(speaking, speaking && calm.next(speaking, now / 1000));
  if (tell) {
    told = now;
    const { dropped } = conversation.sound.cushion;
    const talking = conversation.phase === "talking";
    view.showFigures(talking ? conversation.figures.notice(now / 1000, conversation.queued, dropped) : "");
    if (elements.settings.open) showDetails();
  }
}

function showDetails(): void {
  if (!conversation) {
    view.showDetails([["Conversation", "none yet"]]);
    return;
  }
  const { figures, sound, codecName } = conversation;
  const { fill, target, underruns, skipped, dropped } = sound.cushion;
  const milliseconds = (seconds: number) => `${Math.round(seconds * 1000)} ms`;
  const step = [figures.number("step_p50_ms"), figures.number("step_p95_ms")];
  const rows: [string, string | null][] = [
    ["Server", figures.text("instance_name")],
    ["Model", figures.text("lm_model_file")],
    ["Delay", milliseconds(figures.delay(conversation.queued))],
    ["Queue", `${milliseconds(fill)}, target ${milliseconds(target)}, ${underruns} times empty`],
    ["Lost", `${figures.lost(dropped).toFixed(2)} s; ${skipped.toFixed(2)} s skipped to catch up`],
    ["Step", step[0] === null ? null : `${step[0]} ms, p95 ${step[1] ?? "?"} ms (limit: 80 ms)`],
    ["Sound", `${sound.deviceRate} Hz, Opus by ${codecName || "…"}`],
    ["Microphone", sound.deviceName],
  ];
  view.showDetails(rows.filter((row): row is [string, string] => row[1] !== null && row[1] !== ""));
}

async function listMicrophones(): Promise<void> {
  view.showMicrophones(await microphones(), microphone);
}

function setMuted(next: boolean): void {
  muted = next;
  if (conversation) conversation.muted = muted;
  elements.mute.setAttribute("aria-pressed", String(muted));
  showPhase();
}

function restart(): void {
  if (conversation?.phase !== "talking") return;
  // Other settings need another address.
  if (settings !== settingsUsed) conversation.reconnect();
  else conversation.restart();
}

function fileName(ending: string): string {
  const now = new Date();
  const local = new Date(now.getTime() - now.getTimezoneOffset() * 60_000).toISOString();
  return `moshi-${local.slice(0, 10)}-${local.slice(11, 16).replace(":", "")}.${ending}`;
}

const inputs = new Map(
  FIELDS.map((field) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.id = field.name;
    input.inputMode = field.whole ? "numeric" : "decimal";
    input.autocomplete = "off";
    label.htmlFor = input.id;
    label.append(field.label, input);
    elements.fields.append(label);
    return [field, input] as const;
  }),
);

function openSettings(): void {
  for (const [field, input] of inputs) {
    input.value = settings[field.name] ?? "";
    const used = field.shown ? conversation?.figures.number(field.name) : null;
    input.placeholder = field.shown ? (used == null ? "" : String(used)) : "random";
    input.removeAttribute("aria-invalid");
  }
  view.showModels(offer, settings.model ?? "");
  view.showPersona(offer, settings.voice_prompt ?? "", settings.text_prompt ?? "");
  void learnOffer(settings.model ?? "");
  view.showSettingsError("");
  showDetails();
  void listMicrophones();
  elements.settings.showModal();
}

/** Asks the server again what it offers: meanwhile, it may be another one. */
async function learnOffer(model: string): Promise<void> {
  const former = offer;
  const answer = await askOffer(rest, token, model);
  const { open } = elements.settings;
  if (open && elements.model.value !== model) return; // another one was chosen meanwhile
  offer = answer;
  // What was chosen or typed while the server was asked stays; and a list that is open now must not close.
  if (!open || JSON.stringify(offer) === JSON.stringify(former)) return;
  view.showModels(offer, model);
  view.showPersona(offer, elements.voice.value, elements.role.value);
}

/** Offers what the model has that the user has chosen now. What it does not have is not chosen any more. */
async function modelChosen(): Promise<void> {
  const model = elements.model.value;
  await learnOffer(model);
  if (elements.model.value !== model) return;
  const voice = findVoice(offer.voices, elements.voice.value) ?? "";
  view.showPersona(offer, voice, offer.prompt ? elements.role.value : "");
}

function saveSettings(event: Event): void {
  const next: Settings = {};
  for (const [field, input] of inputs) {
    const text = input.value.trim().replace(",", ".");
    const valid = isValid(field, text);
    input.setAttribute("aria-invalid", String(!valid));
    if (!valid) {
      event.preventDefault();
      const kind = field.whole ? "a whole number" : "a number";
      view.showSettingsError(`${field.label}: ${kind} from ${field.least} to ${field.most} is expected.`);
      input.focus();
      return;
    }
    if (text !== "") next[field.name] = text;
  }
  if (elements.model.value !== "") next.model = elements.model.value;
  if (elements.voice.value !== "") next.voice_prompt = elements.voice.value;
  const role = elements.role.value.trim();
  if (role !== "") next.text_prompt = role;
  if (JSON.stringify(next) !== JSON.stringify(settings)) settings = next;
  store.set("settings", JSON.stringify(settings));
  showChosen();
}

function showChosen(): void {
  view.showChosen(settings.model ?? "", settings.voice_prompt ?? "", settings.text_prompt ?? "");
}

elements.talk.addEventListener("click", () => {
  if (conversation?.phase === "stopped" && !resumed) {
    resumed = true;
    conversation.resume();
    showPhase();
  } else if (isOn()) end();
  else start();
});
elements.mute.addEventListener("click", () => setMuted(!muted));
elements.restart.addEventListener("click", restart);
elements.role.maxLength = PERSONA_LENGTH;
elements.volume.value = store.get("volume") ?? elements.volume.value;
elements.volume.addEventListener("input", () => {
  store.set("volume", elements.volume.value);
  if (conversation) conversation.volume = Number(elements.volume.value) / 100;
});
elements.saveSound.addEventListener("click", () => {
  if (conversation) view.download(conversation.recording.toWav(), fileName("wav"));
});
elements.saveText.addEventListener("click", () => {
  if (conversation)
    view.download(new Blob([conversation.transcript.toText()], { type: "text/plain" }), fileName("txt"));
});
elements.saveJson.addEventListener("click", () => {
  if (!conversation) return;
  const text = JSON.stringify(conversation.transcript.entries, null, 1);
  view.download(new Blob([text], { type: "application/json" }), fileName("json"));
});
elements.token.addEventListener("submit", (event) => {
  event.preventDefault();
  token = elements.tokenValue.value.trim();
  store.set("token", token, "session");
  elements.tokenValue.value = "";
  start();
});
elements.openSettings.addEventListener("click", openSettings);
elements.settingsForm.addEventListener("submit", saveSettings);
elements.settingsCancel.addEventListener("click", () => elements.settings.close());
elements.settingsReset.addEventListener("click", () => {
  for (const input of [...inputs.values(), elements.model, elements.voice, elements.role]) input.value = "";
  void modelChosen();
});
elements.model.addEventListener("change", () => void modelChosen());
elements.microphone.addEventListener("change", () => {
  microphone = elements.microphone.value;
  store.set("microphone", microphone);
  if (isOn()) void conversation?.useMicrophone(microphone);
});
navigator.mediaDevices?.addEventListener("devicechange", () => {
  void listMicrophones();
  if (isOn()) void conversation?.devicesChanged();
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") void keepAwake(isOn());
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || elements.settings.open) return;
  const target = event.target as HTMLElement;
  if (target.matches("input:not([type=range]), select, textarea")) return;
  if (event.key === "m" && isOn()) setMuted(!muted);
  else if (event.key === "r") restart();
});

showPhase();
showChosen();
showTrouble(unable());
void learnOffer(settings.model ?? "");
