// Uses a comparison of runs: sorts and searches its tables, turns pages, and switches the theme.

import { join } from "node:path";

export const compare = async (width, colorScheme, { open, url, shots, expect, violations }) => {
  const name = `${width} px ${colorScheme}`;
  const page = await open(width, colorScheme);
  await page.goto(url);
  await page.locator("#table thead button").first().waitFor();
  const shot = (what, options = {}) => page.screenshot({ path: join(shots, `compare-${width}-${colorScheme}-${what}.png`), ...options });
  await shot("page", { fullPage: true });
  await violations(page, name);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(wide <= 0, `${name}: the page is ${wide} px wider than the window`);
  const rows = (id) => page.locator(`#${id} tbody tr:visible`).allInnerTexts();
  const sort = (id, head) => page.locator(`#${id} thead button`).filter({ hasText: head }).first().click();

  const runs = await rows("table");
  await sort("table", "FVU");
  const down = await rows("table");
  await sort("table", "FVU");
  const up = await rows("table");
  expect(up.join() !== down.join(), `${name}: sorting the runs changes nothing`);
  expect(up.length === runs.length, `${name}: sorting loses runs`);
  const order = await page.locator("#table tbody tr td:nth-child(4)").evaluateAll((cells) => cells.map((cell) => Number(cell.dataset.value)));
  expect(order.every((value, i) => i === 0 || order[i - 1] <= value), `${name}: the runs are not in the order of their FVU: ${order}`);
  const first = await page.locator("#table tbody tr th").first().innerText();
  await page.locator("#search").fill(first);
  const found = await rows("table");
  expect(found.length >= 1 && found.length < runs.length && found.every((row) => row.includes(first)), `${name}: searching for ${first} finds ${found.length}`);
  await page.locator("#search").fill("no such run");
  expect((await rows("table")).length === 0, `${name}: a search for nothing finds something`);
  await page.locator("#search").fill("");

  const latents = page.locator("table.recurring");
  if (await latents.count() > 0) {
    const id = await latents.first().getAttribute("id");
    await page.locator(`#${id} thead button`).first().waitFor();
    await page.waitForFunction(() => document.getElementById("latents-found-0").textContent !== "");
    const before = await rows(id);
    await sort(id, "fires on");
    expect((await rows(id)).join() !== before.join(), `${name}: sorting the latents changes nothing`);
    await page.locator("#next-0").click();
    expect((await page.locator("#page-0").innerText()).startsWith("Page 2"), `${name}: there is no second page of latents`);
    await page.locator("#search-0").fill("17");
    const numbers = await page.locator(`#${id} tbody th`).allInnerTexts();
    expect(numbers.length > 0 && numbers.every((number) => number.startsWith("17")), `${name}: searching for 17 finds ${numbers[0]}`);
    await latents.first().scrollIntoViewIfNeeded();
    await shot("latents");
  }

  await page.locator("#theme").click();
  const theme = await page.evaluate(() => document.documentElement.dataset.theme);
  expect(theme === (colorScheme === "dark" ? "light" : "dark"), `${name}: the switch sets the theme to ${theme}`);
  await violations(page, `${name}, switched to ${theme}`);
  await page.evaluate(() => scrollTo(0, 0));
  await shot("switched");
  await page.context().close();
};
