// Talk with a server by OpenAI's agents for JavaScript: `realtime_agents.mjs PORT FILE`, with sound as PCM. Print lines of JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [port, file, folder] = process.argv.slice(2);
const entry = createRequire(join(folder, "package.json")).resolve("@openai/agents-realtime");
const { RealtimeAgent, RealtimeSession } = await import(pathToFileURL(entry.replace(/\.js$/, ".mjs")));
const { version } = JSON.parse(readFileSync(join(dirname(entry), "..", "package.json")));

const print = (values) => console.log(JSON.stringify(values));
const session = new RealtimeSession(new RealtimeAgent({ name: "digits" }), { transport: "websocket", model: "gpt-realtime" });
let bytes = 0;
let done = 0;
session.on("error", (error) => print({ error }));
session.on("audio", (event) => (bytes += event.data.byteLength));
session.transport.on("*", (event) => {
  if (event.type === "response.output_audio_transcript.delta") print({ event: event.type, word: event.delta });
  else if (event.type !== "response.output_audio.delta") print({ event: event.type });
  done += event.type === "response.done";
});
await session.connect({ apiKey: "none", url: `ws://127.0.0.1:${port}/v1/realtime?model=gpt-realtime` });
const pcm = readFileSync(file);
const begin = Date.now();
for (let at = 0; at < pcm.length && done < 3; at += 1920) {
  const piece = pcm.subarray(at, at + 1920);
  session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.byteLength));
  await new Promise((resolve) => setTimeout(resolve, begin + (at + 1920) / 48 - Date.now()));
}
const history = session.history.map((item) => [item.role, item.status, item.content[0]?.transcript]);
print({ version, seconds: bytes / 48000, history });
session.close();
process.exit(0);
