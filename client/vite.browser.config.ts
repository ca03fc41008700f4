import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/**/*.test.ts"],
    // Browsers, models and servers have two cores in all.
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Sound in real time, with a browser and a model on the same cores: another program's burst makes it stutter.
    retry: 2,
  },
});
