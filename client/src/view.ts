// The elements of the page, and writing into them. It decides nothing.

import { findVoice, type Offer } from "./offer";
import { SENTENCES, type Speaking } from "./speakers";
import { clock } from "./transcript";

function find<E extends HTMLElement>(id: string): E {
  return document.getElementById(id) as E;
}

export const elements = {
  talk: find<HTMLButtonElement>("talk"),
  mute: find<HTMLButtonElement>("mute"),
  restart: find<HTMLButtonElement>("restart"),
  volume: find<HTMLInputElement>("volume"),
  saveSound: find<HTMLButtonElement>("save-sound"),
  saveText: find<HTMLButtonElement>("save-text"),
  saveJson: find<HTMLButtonElement>("save-json"),
  token: find<HTMLFormElement>("token"),
  tokenValue: find<HTMLInputElement>("token-value"),
  openSettings: find<HTMLButtonElement>("open-settings"),
  settings: find<HTMLDialogElement>("settings"),
  settingsForm: find<HTMLFormElement>("settings-form"),
  settingsReset: find<HTMLButtonElement>("settings-reset"),
  settingsCancel: find<HTMLButtonElement>("settings-cancel"),
  microphone: find<HTMLSelectElement>("microphone"),
  model: find<HTMLSelectElement>("model"),
  voice: find<HTMLSelectElement>("voice_prompt"),
  role: find<HTMLTextAreaElement>("text_prompt"),
  fields: find<HTMLDivElement>("fields"),
};

const talkLabel = find("talk-label");
const status = find("status");
const speaking = find("speaking");
const speakingTold = find("speaking-told");
const trouble = find("trouble");
const persona = find("persona");
const figures = find("figures");
const transcript = find("transcript");
const modelField = find("models");
const voiceField = find("voice");
const roleField = find("role");
const settingsError = find("settings-error");
const details = find("details");

/** In "busy" and "talking", the button ends the conversation. */
export function showPhase(phase: "idle" | "busy" | "talking" | "stopped", label: string, sentence: string): void {
  document.body.dataset.phase = phase;
  talkLabel.textContent = label;
  setText(status, sentence);
}

export function showTrouble(sentence: string, notice: boolean): void {
  trouble.classList.toggle("notice", notice);
  setText(trouble, sentence);
}

/** Shows what the user has chosen, so that nobody forgets it. */
export function showChosen(model: string, voice: string, role: string): void {
  setText(
    persona,
    [model && `Model: ${model}`, voice && `Voice: ${voice}`, role && `Role: ${role}`].filter(Boolean).join(" · "),
  );
  persona.hidden = persona.textContent === "";
}

export function showFigures(text: string): void {
  setText(figures, text);
}

export function showSettingsError(sentence: string): void {
  setText(settingsError, sentence);
}

// If the same text were written again, a screen reader would say it again.
function setText(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

let words: HTMLElement | null = null; // of Moshi's last line
let yours: HTMLElement | null = null; // of the user's

export function clearTranscript(): void {
  words = yours = null;
  transcript.replaceChildren();
}

export function addText(text: string, seconds: number, beginsLine: boolean): void {
  follow(() => {
    if (!beginsLine && words) {
      words.append(text);
      return;
    }
    words = document.createElement("span");
    words.textContent = text.trimStart();
    addLine(seconds, words);
  });
}

/** Marks where the user spoke. A screen reader is not told: they know. */
export function addYou(seconds: number): void {
  follow(() => {
    yours = document.createElement("em");
    yours.textContent = "You spoke";
    const line = addLine(seconds, yours);
    line.className = "you";
    line.ariaLive = "off";
  });
}

/** Shows the words of the user's turn, on a line of their own or, if it does not begin one, in place of the last mark. */
export function addHeard(text: string, seconds: number, beginsLine: boolean): void {
  if (beginsLine) addYou(seconds);
  follow(() => yours?.replaceChildren(text));
}

/** Shows a tool that the language model has called. */
export function addTool(call: string, seconds: number): void {
  follow(() => {
    const mark = document.createElement("code");
    mark.textContent = call;
    addLine(seconds, mark).className = "tool";
  });
}

function addLine(seconds: number, content: HTMLElement): HTMLElement {
  const line = document.createElement("p");
  const time = document.createElement("time");
  time.textContent = clock(seconds);
  line.append(time, content);
  transcript.append(line);
  return line;
}

export function addRenewed(): void {
  follow(() => {
    const line = document.createElement("p");
    line.className = "renewed";
    line.textContent = "A new conversation";
    transcript.append(line);
  });
}

/** Scrolls to the end, unless the user has scrolled back. */
function follow(change: () => void): void {
  const atEnd = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 40;
  change();
  if (atEnd) transcript.scrollTop = transcript.scrollHeight;
}

const meters = { you: find("meter-you"), moshi: find("meter-moshi") };

export function showLevels(levels: { you: number; moshi: number }, tell: boolean): void {
  for (const name of ["you", "moshi"] as const) {
    const meter = meters[name];
    meter.style.setProperty("--level", levels[name].toFixed(3));
    if (tell) meter.setAttribute("aria-valuenow", String(Math.round(levels[name] * 100)));
  }
}

/** Shows who speaks, and tells a screen reader in its own time; null: there is no conversation. */
export function showSpeaking(state: Speaking | null, told: Speaking | null): void {
  if (state) document.body.dataset.speaking = state;
  else delete document.body.dataset.speaking;
  setText(speaking, state ? SENTENCES[state] : "");
  setText(speakingTold, told ? SENTENCES[told] : "");
}

export function showDetails(rows: [name: string, value: string][]): void {
  details.replaceChildren(
    ...rows.flatMap(([name, value]) => {
      const term = document.createElement("dt");
      term.textContent = name;
      const description = document.createElement("dd");
      description.textContent = value;
      return [term, description];
    }),
  );
}

export function showMicrophones(devices: MediaDeviceInfo[], chosen: string): void {
  const options = devices
    .filter(({ deviceId }) => deviceId !== "default" && deviceId !== "")
    .map(({ deviceId, label }) => new Option(label, deviceId));
  elements.microphone.replaceChildren(new Option("The system’s choice", ""), ...options);
  elements.microphone.value = options.some(({ value }) => value === chosen) ? chosen : "";
}

/** Shows the models where there is more than one, and what was chosen before, so that it can be taken back. */
export function showModels({ models }: Offer, chosen: string): void {
  const names = chosen === "" || models.includes(chosen) ? models : [...models, chosen];
  const [first] = models;
  const none = first === undefined ? "The server’s choice" : `The server’s choice (${first})`;
  elements.model.replaceChildren(new Option(none, ""), ...names.map((name) => new Option(name)));
  elements.model.value = chosen;
  modelField.hidden = names.length < 2 && chosen === "";
}

/** Shows the fields for what is on offer, and for what was chosen before, so that it can be taken back. */
export function showPersona({ prompt, voices, voice, sampling }: Offer, chosen: string, role: string): void {
  const listed = findVoice(voices, chosen) ?? chosen;
  const names = listed === "" || voices.includes(listed) ? voices : [...voices, listed];
  const none = voice === "" ? "The server’s choice" : `The server’s choice (${voice})`;
  elements.voice.replaceChildren(new Option(none, ""), ...names.map((name) => new Option(name)));
  elements.voice.value = listed;
  elements.role.value = role;
  voiceField.hidden = names.length === 0;
  roleField.hidden = !prompt && role === "";
  elements.fields.hidden = !sampling;
}

export function download(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  // By then the browser has taken the file, even if it asks for a folder first.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
