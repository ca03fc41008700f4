// The page behind nginx, with the lines of docs/proxy.md as they stand and with others, in Chromium.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { launchChromium, type Opened, openPage, REPOSITORY } from "./harness";
import { freePort, GREEDY, RealServer } from "./server";

const NGINX = ["/usr/sbin/nginx", "/usr/bin/nginx", "/opt/homebrew/bin/nginx"].find(existsSync);
if (!NGINX && process.env.MSH_REQUIRE_PROXY) throw new Error("nginx is not installed: sh scripts/setup.sh proxy");

const DOCUMENTED = [...readFileSync(join(REPOSITORY, "docs/proxy.md"), "utf8").matchAll(/```nginx\n(.*?)```/gs)].map(
  (match) => match[1] as string,
);
const [ROOT, PATH] = DOCUMENTED as [string, string];
// As many have it.
const USUAL = `location / {
  proxy_pass http://127.0.0.1:9998;
  proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
  HOST
}`;
const NO_UPGRADE = "location / { proxy_pass http://127.0.0.1:9998; proxy_set_header Host $http_host; }";

class Nginx {
  private constructor(
    readonly url: string,
    private readonly process: ChildProcess,
    private readonly folder: string,
  ) {}

  static async start(server: RealServer, lines: string): Promise<Nginx> {
    const folder = mkdtempSync(join(tmpdir(), "msh-nginx-"));
    const port = await freePort();
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((n) => `${n}_temp_path ${n};`).join(" ");
    const conf = join(folder, "nginx.conf");
    writeFileSync(
      conf,
      `daemon off; master_process off; pid nginx.pid; error_log stderr; events { worker_connections 64; }
       http { access_log off; ${temporary} server { listen 127.0.0.1:${port};
       ${lines.replaceAll("127.0.0.1:9998", `127.0.0.1:${server.port}`)} } }`,
    );
    const process = spawn(NGINX as string, ["-p", folder, "-c", conf, "-e", "stderr"], { stdio: "ignore" });
    const nginx = new Nginx(`http://localhost:${port}`, process, folder);
    for (let attempt = 0; attempt < 100; attempt++) {
      const answer = await fetch(`${nginx.url}/`, { redirect: "manual" }).catch(() => null);
      if (answer) return nginx;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await nginx.stop();
    throw new Error("nginx does not start.");
  }

  async stop(): Promise<void> {
    const exited = new Promise((resolve) => this.process.once("exit", resolve));
    if (this.process.exitCode === null && this.process.kill()) await exited;
    rmSync(this.folder, { recursive: true, force: true });
  }
}

let browser: Browser;
let server: RealServer | undefined;
let nginx: Nginx | undefined;
let opened: Opened | undefined;

beforeAll(async () => {
  browser = await launchChromium();
});
afterAll(() => browser.close());
afterEach(async () => {
  await opened?.context.close();
  await nginx?.stop();
  await server?.stop();
  opened = nginx = server = undefined;
});

/** Opens the page through nginx and presses the button. */
async function talk(lines: string, path: string, ...options: string[]) {
  server = await RealServer.start(0, options);
  nginx = await Nginx.start(server, lines);
  opened = await openPage(browser, `${nginx.url}${path}`);
  await opened.page.click("#talk");
  return { page: opened.page, complaints: opened.complaints, url: nginx.url };
}

test.skipIf(!NGINX).each([
  ["a name of its own", ROOT, `/${GREEDY}`],
  ["a base path", PATH, `/moshi/${GREEDY}`],
  ["a base path without its slash", PATH, `/moshi${GREEDY}`],
  ["Host without the port", USUAL.replace("HOST", "proxy_set_header Host $host;"), `/${GREEDY}`],
])("%s: Moshi answers", async (_, lines, path) => {
  const { page, complaints } = await talk(lines, path, "--trusted-proxy", "127.0.0.1");
  await page.waitForSelector("#transcript p span:not(:empty)");
  expect(complaints).toEqual([]);
});

test.skipIf(!NGINX).each([
  ["no Host", USUAL.replace("HOST", ""), [], "may not use this server, which was asked for as '127.0.0.1'"],
  ["a token", ROOT, ["--token", "s3cret"], "The server needs its token"],
  ["no upgrade", NO_UPGRADE, [], "websockets do not reach it: a proxy in between must pass on"],
])("%s: the page shows the server's reason", async (_, lines, options, reason) => {
  const { page, url } = await talk(lines, "/", ...options);
  await page.waitForSelector(`#trouble:has-text(${JSON.stringify(reason)})`);
  if (reason.startsWith("may not")) expect(await page.textContent("#trouble")).toContain(`--allow-origin ${url}`);
});

test.skipIf(!NGINX)("the origin that the page names lets it in", async () => {
  const first = await talk(USUAL.replace("HOST", ""), "/");
  await first.page.waitForSelector("#trouble:has-text('may not use this server')");
  const port = server?.port as number;
  await server?.stop();
  server = await RealServer.start(port, ["--allow-origin", first.url]);
  await first.page.click("#talk");
  await first.page.waitForSelector("[data-phase=talking]");
});
