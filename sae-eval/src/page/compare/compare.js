"use strict";
// The page is whole without this script: it adds order and search to the tables.
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  root.classList.add("js");

  // ---- making elements: text goes in as text, never as markup
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // ---- numbers as the rest of the page shows them
  const count = (value) => value.toLocaleString("en-US");
  const two = (value) => (Number.isFinite(value) ? value.toFixed(2) : "–");
  const percent = (share) => {
    const value = 100 * share;
    return (value !== 0 && Math.abs(value) < 0.1 ? value.toFixed(3) : value.toFixed(1)) + " %";
  };

  // ---- packed data
  const unpack = (id) => {
    const packed = Uint8Array.from(atob(find(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Response(stream).arrayBuffer();
  };

  // ---- heads of tables become buttons; `order(place, down)` is called with the head's place
  const buttons = (table, order) => {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, place) => {
      const button = make("button", { type: "button" });
      button.append(...head.childNodes);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const first = head.classList.contains("n") && head.dataset.key !== "latent" ? "descending" : "ascending";
        const now = was === "ascending" ? "descending" : was === "descending" ? "ascending" : first;
        for (const other of heads) other.setAttribute("aria-sort", other === head ? now : "none");
        order(place, now === "descending");
      });
    });
  };

  // ---- tables whose rows are all in the page: numbers by their value, words by the alphabet, unknown ones last
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    buttons(table, (place, down) => {
      const numeric = table.tHead.rows[0].cells[place].classList.contains("n");
      const value = (row) => {
        const cell = row.cells[place];
        if (!numeric) return cell.dataset.value ?? cell.textContent;
        return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
      };
      const rows = [...body.rows].map((row) => [value(row), row]);
      const sign = down ? -1 : 1;
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
        return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  }

  // ---- search of runs: every word must be in the name, the recipe or the seed
  const search = find("search");
  const runs = [...find("table").tBodies[0].rows].map((row) => [[0, 1, 2].map((i) => row.cells[i].textContent.toLowerCase()), row]);
  const choose = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [cells, row] of runs) {
      row.hidden = !words.every((word) => cells.some((cell) => cell.includes(word)));
      shown += row.hidden ? 0 : 1;
    }
    find("found").textContent = count(shown) + (shown === 1 ? " run" : " runs");
  };
  search.addEventListener("input", choose);
  choose();

  // ---- latents that recur: the table of the page has the first of them, the data has all
  const PAGE = 20;
  const recurring = async (table) => {
    const i = table.dataset.of;
    const meta = JSON.parse(new TextDecoder().decode(await unpack("meta-" + i)));
    const buffer = await unpack("columns-" + i);
    const m = meta.latents;
    const others = meta.pages.length - 1;
    const at = (type, column) => new type(buffer, 4 * m * column, m);
    const columns = { latent: at(Uint32Array, 0), fired: at(Int32Array, 1), recurs: at(Int32Array, 2), mean: at(Float32Array, 3) };
    const partners = [];
    for (let k = 0; k < others; k += 1) {
      columns["cosine" + k] = at(Float32Array, 4 + 2 * k);
      partners.push(at(Int32Array, 5 + 2 * k));
    }
    const heads = [...table.querySelectorAll("thead th")];
    const [input, found, body] = [find("search-" + i), find("latents-found-" + i), table.tBodies[0]];
    let [key, down, page, shown] = ["recurs", true, 0, null];

    const link = (run, latent) => {
      const address = meta.pages[run];
      return address === null ? String(latent) : make("a", { class: "latent", href: address + "#latent-" + latent }, String(latent));
    };
    const row = (j) => {
      const fires = columns.fired[j] < 0 ? "–" : columns.fired[j] === 0 ? "dead" : percent(columns.fired[j] / meta.rows);
      const cell = (...content) => make("td", { class: "n" }, ...content);
      const other = partners.map((partner, k) => {
        const cosine = two(columns["cosine" + k][j]);
        return partner[j] < 0 ? cell(cosine) : cell(cosine + " · ", link(k + 1, partner[j]));
      });
      return make("tr", {}, make("th", { class: "n", scope: "row" }, link(0, columns.latent[j])), cell(fires),
        cell(columns.recurs[j] < 0 ? "–" : columns.recurs[j] + " of " + others), cell(two(columns.mean[j])), ...other);
    };
    const ordered = () => {
      const column = columns[key];
      const value = (j) => (column[j] < 0 && (key === "fired" || key === "recurs") ? NaN : column[j]);
      const order = Array.from({ length: m }, (_, j) => j);
      const sign = down ? -1 : 1;
      const mean = (j) => (Number.isNaN(columns.mean[j]) ? -2 : columns.mean[j]);
      return order.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const first = Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
        return first || (key === "recurs" ? mean(b) - mean(a) : 0) || a - b;
      });
    };
    const render = () => {
      const pages = Math.max(1, Math.ceil(shown.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      body.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(row));
      find("page-" + i).textContent = "Page " + count(page + 1) + " of " + count(pages);
      [find("previous-" + i).disabled, find("next-" + i).disabled] = [page === 0, page === pages - 1];
      found.textContent = count(shown.length) + (shown.length === 1 ? " latent" : " latents");
    };
    const update = () => {
      const wanted = input.value.trim();
      shown = ordered().filter((j) => String(columns.latent[j]).startsWith(wanted));
      page = 0;
      render();
    };
    buttons(table, (place, falls) => {
      [key, down] = [heads[place].dataset.key, falls];
      update();
    });
    input.addEventListener("input", update);
    for (const [id, step] of [["previous-", -1], ["next-", 1]]) {
      find(id + i).addEventListener("click", () => {
        page += step;
        render();
      });
    }
    update();
  };
  for (const table of document.querySelectorAll("table.recurring")) recurring(table).catch((error) => console.error(error));
})();
