// Headless Chromium, and the faults that every look at a page finds: console messages, requests to places that are not
// allowed, and serious violations that axe-core finds. SAE_CHROMIUM names the browser; default: /usr/bin/chromium.

import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

export const begin = async (shots) => {
  mkdirSync(shots, { recursive: true });
  const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  const faults = [];
  const browser = await chromium.launch({
    executablePath: process.env.SAE_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  const expect = (holds, fault) => { if (!holds) faults.push(fault); };
  const watch = (page, name, allowed) => {
    page.on("console", (message) => faults.push(`${name}: console ${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => faults.push(`${name}: ${error}`));
    page.on("request", (request) => {
      const to = request.url();
      expect(allowed(to) || to.startsWith("data:") || to.startsWith("blob:"), `${name}: a request to ${to}`);
    });
    return page;
  };
  const violations = async (frame, name, options = {}) => {
    await frame.evaluate(axe);
    const run = (options) => globalThis.axe.run(document, { resultTypes: ["violations"], ...options });
    for (const { id, impact, help, nodes } of (await frame.evaluate(run, options)).violations) {
      const line = `${name}: axe ${impact}: ${id}: ${help}, ${nodes.length} times, first ${nodes[0].html.slice(0, 160)}`;
      if (impact === "serious" || impact === "critical") faults.push(line);
      else console.log(line);
    }
  };
  const end = () => {
    for (const fault of new Set(faults)) console.error(fault);
    console.log(faults.length ? `${faults.length} faults` : "nothing is wrong");
    process.exit(faults.length ? 1 : 0);
  };
  return { browser, faults, expect, watch, violations, end };
};
