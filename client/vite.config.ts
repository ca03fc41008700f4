import { defineConfig } from "vitest/config";

export default defineConfig({
  // The page may be served under any path.
  base: "./",
  build: {
    target: "es2022",
    // The server's content security policy allows no data: and blob: scripts, so nothing is put inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  worker: { format: "es" },
  // Long enough for a machine that does other things besides.
  test: { include: ["unit/**/*.test.ts"], testTimeout: 60_000 },
});
