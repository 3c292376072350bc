// Opens a report or a comparison in headless Chromium, uses it, and fails on any console message, any request that leaves the
// page, and any serious violation that axe-core finds.
//
//   npm install --prefix tools/browser --no-package-lock
//   node tools/browser/look.mjs runs/quickstart/reports/report.html [directory for screenshots]
//   node tools/browser/look.mjs runs/compare.html [directory for screenshots]
//
// SAE_CHROMIUM names the browser; default: /usr/bin/chromium.

import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { begin } from "./browser.mjs";
import { compare } from "./compare.mjs";

const [page_path, shots = "browser-shots"] = process.argv.slice(2);
if (!page_path) {
  console.error("usage: node look.mjs REPORT.html [directory for screenshots]");
  process.exit(2);
}
const url = pathToFileURL(resolve(page_path)).href;
const is_comparison = readFileSync(page_path, "utf8").includes('<html class="comparison"');
const { browser, expect, watch, violations, end } = await begin(shots);
const alone = (to) => to === url;

const open = async (width, colorScheme, javaScriptEnabled = true) => {
  // bypassCSP: axe is a script of this program, not of the page; the first opening below goes without it
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, javaScriptEnabled, bypassCSP: true });
  return watch(await context.newPage(), `${width} px ${colorScheme}`, alone);
};
const rows = (page) => page.locator("#table tbody tr").allInnerTexts();

const use = async (width, colorScheme) => {
  const name = `${width} px ${colorScheme}`;
  const page = await open(width, colorScheme);
  await page.goto(url);
  await page.locator("#table thead button").first().waitFor();
  const shot = (what, options = {}) => page.screenshot({ path: join(shots, `${width}-${colorScheme}-${what}.png`), ...options });
  await shot("page", { fullPage: true });
  await page.locator("#map").scrollIntoViewIfNeeded();
  await page.evaluate(() => document.querySelector("#map").scrollIntoView());
  await shot("map");
  await violations(page, name);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(wide <= 0, `${name}: the page is ${wide} px wider than the window`);

  const before = await rows(page);
  await page.getByRole("button", { name: "max", exact: true }).click();
  const sorted = await rows(page);
  expect(sorted.join() !== before.join(), `${name}: sorting changes nothing`);
  await page.getByRole("button", { name: "max", exact: true }).click();
  expect((await rows(page)).join() !== sorted.join(), `${name}: sorting the other way changes nothing`);
  const search = (query) => page.evaluate((query) => {
    const search = document.getElementById("search");
    search.value = query;
    const started = performance.now();
    search.dispatchEvent(new Event("input"));
    return performance.now() - started;
  }, query);
  const time = Math.max(await search("an"), await search("1"));
  console.log(`${name}: a search takes ${time.toFixed(1)} ms`);
  expect(time < 100, `${name}: a search takes ${time} ms`);
  const found = await rows(page);
  expect(found.length > 0 && found.every((row) => /^1/.test(row)) , `${name}: searching for 1 finds ${found[0]}`);

  await page.locator("#table tbody a.latent").first().click();
  await page.locator("dialog[open] h2").waitFor();
  const title = await page.locator("dialog h2").innerText();
  await shot("card");
  await violations(page, `${name}, card`);
  await page.locator("dialog").getByRole("button", { name: "Next latent" }).click();
  await page.waitForFunction((old) => document.querySelector("dialog h2").textContent !== old, title);
  await page.keyboard.press("Escape");
  expect(await page.locator("dialog[open]").count() === 0, `${name}: Escape leaves the card open`);

  const map = page.locator("#map-strength");
  await map.scrollIntoViewIfNeeded();
  const box = await map.boundingBox();
  let opened = false;
  for (const part of [0.5, 0.4, 0.6, 0.3, 0.7]) {
    await page.mouse.click(box.x + part * box.width, box.y + (1 - part) * box.height * 0.8 + 10);
    opened = await page.locator("dialog[open]").waitFor({ timeout: 1000 }).then(() => true, () => false);
    if (opened) break;
  }
  expect(opened, `${name}: no dot of the map opens a card`);
  await page.keyboard.press("Escape");

  await page.locator("#theme").click();
  const theme = await page.evaluate(() => document.documentElement.dataset.theme);
  expect(theme === (colorScheme === "dark" ? "light" : "dark"), `${name}: the switch sets the theme to ${theme}`);
  await violations(page, `${name}, switched to ${theme}`);
  await shot("switched");
  await page.context().close();
};

try {
  const strict = watch(await (await browser.newContext()).newPage(), "under its own policy", alone);
  await strict.goto(url);
  await strict.locator("#table thead button").first().waitFor();
  const paint = await strict.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
  console.log(`first paint after ${paint?.toFixed(0)} ms`);
  await strict.context().close();

  for (const width of [1280, 390]) for (const scheme of ["light", "dark"]) {
    if (is_comparison) await compare(width, scheme, { open, url, shots, expect, violations });
    else await use(width, scheme);
  }

  const plain = await open(1280, "light", false);
  await plain.goto(url);
  expect((await rows(plain)).length > 0 && await plain.locator("svg").count() > 3, "without JavaScript there is no table or no chart");
  await plain.context().close();
} finally {
  await browser.close();
}
end();
