// Opens the page of `cargo xtask watch` in headless Chromium, wide and narrow, light and dark, and fails on any console
// message, any request to another origin, and any serious violation that axe-core finds, also inside the report.
//
//   cargo xtask watch runs/quickstart --port 8737 &
//   node tools/browser/watch.mjs http://127.0.0.1:8737/ [directory for screenshots]
//
// SAE_CHROMIUM names the browser; default: /usr/bin/chromium.

import { join } from "node:path";
import { begin } from "./browser.mjs";

const [address, shots = "browser-shots"] = process.argv.slice(2);
if (!address) {
  console.error("usage: node watch.mjs http://127.0.0.1:PORT/ [directory for screenshots]");
  process.exit(2);
}
const origin = new URL(address).origin;
const { browser, faults, expect, watch, violations, end } = await begin(shots);

const open = async (name, options) => {
  const context = await browser.newContext(options);
  const page = watch(await context.newPage(), name, (to) => to.startsWith(`${origin}/`));
  page.on("requestfailed", (request) => {
    // a picture or a report that is replaced while it loads
    if (request.failure()?.errorText !== "net::ERR_ABORTED") faults.push(`${name}: ${request.url()}: ${request.failure()?.errorText}`);
  });
  await page.goto(address);
  await page.locator("#steps:not(:empty)").waitFor();
  return page;
};
const report = async (page) => {
  await page.locator("#report").waitFor({ timeout: 120_000 });
  const frame = page.frame({ url: /report\.html/ });
  await frame.locator("#table thead button").first().waitFor({ timeout: 30_000 });
  return frame;
};

try {
  // under the page's own policy: bypassCSP below is for axe, a script of this program
  const strict = await open("under its own policy", {});
  await report(strict);
  const drawn = await strict.evaluate(() => [...document.images].filter((image) => !image.hidden && image.naturalWidth > 0).length);
  expect(drawn === 3, `${drawn} of 3 curves are drawn`);
  await strict.context().close();

  for (const width of [1280, 390]) for (const colorScheme of ["light", "dark"]) {
    const name = `${width} px ${colorScheme}`;
    const page = await open(name, { viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
    const frame = await report(page);
    const shot = (what, options = {}) => page.screenshot({ path: join(shots, `watch-${width}-${colorScheme}-${what}.png`), ...options });
    await shot("top");
    await shot("page", { fullPage: true });
    await violations(page.mainFrame(), name, { iframes: false });
    await violations(frame, `${name}, report`, { iframes: false });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    expect(wide <= 0, `${name}: the page is ${wide} px wider than the window`);
    // a card that is open stays open while the page asks for the state
    await frame.locator("#table tbody a.latent").first().click();
    await frame.locator("dialog[open] h2").waitFor();
    const title = await frame.locator("dialog h2").innerText();
    await page.waitForTimeout(5000);
    expect(await frame.locator("dialog[open] h2").innerText().catch(() => "") === title, `${name}: the open card has gone`);
    await page.locator("#report").scrollIntoViewIfNeeded();
    await shot("card");
    const newer = page.locator("#newer:visible");
    if (await newer.count()) {
      await newer.click();
      await page.waitForTimeout(1500);
      const again = await report(page);
      await again.locator("dialog[open] h2").waitFor();
      expect(await again.locator("dialog h2").innerText() === title, `${name}: the newer report shows another card`);
      console.log(`${name}: a newer report was opened with the same card`);
    }
    await page.context().close();
  }
} finally {
  await browser.close();
}
end();
