// What the server lets a client choose before a conversation: a model, and that model's voices and role.

import { chatAddress, plainAddress } from "./protocol";

export interface Offer {
  /** Whether the model can be given a role in words. */
  prompt: boolean;
  voices: string[];
  /** The voice that the server takes if the client names none; "" if it has none. */
  voice: string;
  /** The models of the server, the one that it takes if the client names none first; none if it has no such list. */
  models: string[];
  /** The model that has these voices; "" if the server does not say. */
  model: string;
  /** Whether the parameters of sampling change anything. */
  sampling: boolean;
}

export const NO_OFFER: Offer = { prompt: false, voices: [], voice: "", models: [], model: "", sampling: true };
const ASK_MS = 5000;

export function readOffer(values: unknown): Offer {
  if (typeof values !== "object" || values === null) return NO_OFFER;
  const { prompt, voices, voice, models, model, sampling } = values as Record<string, unknown>;
  return {
    prompt: prompt === true,
    voices: names(voices),
    voice: typeof voice === "string" ? voice : "",
    models: names(models),
    model: typeof model === "string" ? model : "",
    sampling: sampling !== false,
  };
}

function names(values: unknown): string[] {
  return Array.isArray(values) ? values.filter((name): name is string => typeof name === "string") : [];
}

export function voicesAddress(page: URL, token: string | null, model = ""): URL {
  const address = new URL("voices", plainAddress(chatAddress(page, {})));
  if (token !== null) address.searchParams.set("worker_auth_id", token);
  if (model !== "") address.searchParams.set("model", model);
  return address;
}

/**
 * Asks the server what it offers with a model; with "", or if it does not have that one, with its own choice. Published servers
 * have no such list: then, as when it does not answer, nothing is on offer.
 */
export async function askOffer(page: URL, token: string | null, model: string): Promise<Offer> {
  const ask = (name: string) =>
    fetch(voicesAddress(page, token, name), { cache: "no-store", signal: AbortSignal.timeout(ASK_MS) });
  try {
    let answer = await ask(model);
    if (answer.status === 400 && model !== "") answer = await ask("");
    return answer.ok ? readOffer(await answer.json()) : NO_OFFER;
  } catch {
    return NO_OFFER;
  }
}

/** Finds a voice among those of the server: published pages name the file, which ends with `.pt`. */
export function findVoice(voices: readonly string[], wanted: string): string | null {
  return voices.find((name) => name === wanted || `${name}.pt` === wanted) ?? null;
}
