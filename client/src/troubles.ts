// Every trouble has its sentence, which says what to do. All of these sentences are in this file.

export type Trouble =
  | { cause: "insecure"; host: string; port: string }
  | { cause: "unsupported" }
  | { cause: "incomplete" }
  | { cause: "permission" }
  | { cause: "no-microphone" }
  | { cause: "microphone-busy" }
  | { cause: "microphone-gone" }
  | { cause: "sound"; detail: string }
  | { cause: "sound-stopped" }
  | { cause: "waiting"; place: number }
  | { cause: "token" }
  | { cause: "refused"; detail: string }
  | { cause: "unready"; detail: string; seconds: number }
  | { cause: "unreachable"; seconds: number }
  | { cause: "no-websocket"; seconds: number }
  | { cause: "foreign"; page: string }
  | { cause: "lost"; seconds: number }
  | { cause: "silent"; seconds: number }
  | { cause: "renewed" }
  | { cause: "ignored"; names: string[] }
  | { cause: "told"; detail: string }
  | { cause: "server"; detail: string }
  | { cause: "ended" }
  | { cause: "slow" }
  | { cause: "full"; hours: number };

/** A notice only informs. Any other trouble keeps the conversation from going on. */
const NOTICES: ReadonlySet<Trouble["cause"]> = new Set([
  "waiting",
  "renewed",
  "ignored",
  "told",
  "slow",
  "full",
  "ended",
]);

export function isNotice(trouble: Trouble): boolean {
  return NOTICES.has(trouble.cause);
}

const SENTENCES: { [Cause in Trouble["cause"]]: (trouble: Extract<Trouble, { cause: Cause }>) => string } = {
  insecure: ({ host, port }) =>
    `The browser gives the microphone only to secure pages: start the server with --ssl FOLDER and open https://${host}${port ? `:${port}` : ""}/ instead.`,
  unsupported: () => "This browser is too old for a conversation: it has no AudioWorklet or no WebAssembly.",
  incomplete: () => "A part of the page did not load: is the server running? Reload the page to try again.",
  permission: () =>
    "The page may not use the microphone: allow it in the browser's settings for this page, then press the button again.",
  "no-microphone": () => "There is no microphone: connect one, then press the button again.",
  "microphone-busy": () =>
    "The microphone does not start: another program may be using it. Close that program, then press the button again.",
  "microphone-gone": () => "The microphone is gone: connect it again or choose another one.",
  sound: ({ detail }) => `The browser's sound does not start (${detail}): reload the page to try again.`,
  "sound-stopped": () =>
    "The browser has stopped the sound: press “Resume” to go on, or connect a loudspeaker if there is none.",
  waiting: ({ place }) =>
    place <= 1
      ? "The server is busy with another conversation: you are next in line."
      : `The server is busy with another conversation: you are number ${place} in line.`,
  token: () => "The server needs its token: enter the one that it printed when it started.",
  refused: ({ detail }) => sentence(detail, "The server does not accept the conversation."),
  unready: ({ detail, seconds }) => `${sentence(detail, "The server is not ready.")} ${again(seconds)}`,
  unreachable: ({ seconds }) => `The server does not answer: is it running? ${again(seconds)}`,
  "no-websocket": ({ seconds }) =>
    `The server answers, but websockets do not reach it: a proxy in between must pass on the headers Upgrade and Connection. ${again(seconds)}`,
  foreign: ({ page }) =>
    `The server answers, but not to pages of ${page}: start it with --allow-origin ${page}, or open its own page.`,
  lost: ({ seconds }) => `The connection was lost. ${again(seconds)}`,
  silent: ({ seconds }) => `The server has sent nothing for 10 seconds. ${again(seconds)}`,
  renewed: () => "Connected again: this is a new conversation, and Moshi does not remember the one before.",
  ignored: ({ names }) =>
    `The server does not know ${names.length > 1 ? "these parameters" : "this parameter"}: ${names.join(", ")}.`,
  told: ({ detail }) => sentence(detail, "The server has something to say about the settings."),
  server: ({ detail }) => sentence(detail, "The server ended the conversation because of an error."),
  ended: () => "The conversation has ended. Press the button to begin another one.",
  slow: () =>
    "The server is too slow for this model, so parts of the sound are lost: choose a smaller model or a faster machine.",
  full: ({ hours }) => `The recording has reached ${hours} hours and ends here. The conversation goes on.`,
};

export function explain(trouble: Trouble): string {
  const write = SENTENCES[trouble.cause] as (trouble: Trouble) => string;
  return write(trouble);
}

function again(seconds: number): string {
  return seconds < 1 ? "Connecting again…" : `Connecting again in ${Math.round(seconds)} s…`;
}

/** A server's answer as a sentence, or `otherwise` for an answer that cannot be shown, such as a proxy's page of HTML. */
function sentence(detail: string, otherwise: string): string {
  const text = detail.trim();
  if (text === "" || text.length > 500 || text.startsWith("<")) return otherwise;
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

/** The trouble with the microphone, by the error that getUserMedia threw. */
export function microphoneTrouble(error: unknown): Trouble {
  const name = error instanceof Error || error instanceof DOMException ? error.name : "";
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return { cause: "permission" };
    case "NotFoundError":
    case "OverconstrainedError":
      return { cause: "no-microphone" };
    case "NotReadableError":
    case "AbortError":
      return { cause: "microphone-busy" };
    default:
      return { cause: "sound", detail: error instanceof Error ? error.message : String(error) };
  }
}

/**
 * Why a websocket did not open, by the answer to a plain request of the same address. All but "token" and "refused" may be
 * over at the next attempt.
 */
export function refusal(status: number, body: string, seconds: number): Trouble {
  if (status === 401) return { cause: "token" };
  // A websocket would have been accepted; published servers do not answer plain requests.
  if (status === 426 || status === 405) return { cause: "no-websocket", seconds };
  if (status === 503) return { cause: "unready", detail: body, seconds };
  // A proxy does not reach the server behind it.
  if (status === 502 || status === 504) return { cause: "unreachable", seconds };
  return { cause: "refused", detail: body };
}
