"use strict";
// The page is whole without this script: it adds search and order to the table of latents, and cards.
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  root.classList.add("js");

  // ---- making elements: text goes in as text, never as markup
  const SVG = "http://www.w3.org/2000/svg";
  const fill = (element, attributes, children) => {
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  // ---- numbers as the rest of the page shows them
  const count = (value) => value.toLocaleString("en-US");
  const number = (value) => {
    const size = Math.abs(value);
    if (!Number.isFinite(value)) return "–";
    if (Number.isInteger(value)) return count(value);
    if (size < 1e-3) return value.toExponential(2);
    if (size < 10) return value.toFixed(4);
    return size < 1000 ? value.toFixed(1) : count(Math.round(value));
  };
  const percent = (share) => {
    const value = 100 * share;
    if (!Number.isFinite(value)) return "–";
    return (value !== 0 && Math.abs(value) < 0.1 ? value.toFixed(3) : value.toFixed(1)) + " %";
  };
  const two = (value) => (Number.isFinite(value) ? value.toFixed(2) : "–");

  // ---- packed data
  const unpack = async (id) => {
    const text = find(id).textContent;
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Response(stream).arrayBuffer();
  };
  const unpacked = new Map();
  const json = (id) => {
    if (!unpacked.has(id)) {
      if (unpacked.size > 64) unpacked.delete(unpacked.keys().next().value);
      unpacked.set(id, unpack(id).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))));
    }
    return unpacked.get(id);
  };

  const start = async () => {
    const meta = await json("meta");
    const buffer = await unpack("columns");
    const m = meta.latents;
    const at = (type, column) => new type(buffer, 4 * m * column, m);
    const columns = {
      latent: Uint32Array.from({ length: m }, (_, j) => j),
      fired: at(Uint32Array, 0), mean: at(Float32Array, 1), max: at(Float32Array, 2), entropy: at(Float32Array, 3),
      best: at(Int32Array, 4), f1: at(Float32Array, 5), near: at(Int32Array, 6), cosine: at(Float32Array, 7),
      x: at(Float32Array, 8), y: at(Float32Array, 9),
    };
    const glosses = await json("glosses");
    const className = (label) => meta.classes[label] ?? "class " + label;
    const link = (j) => make("a", { href: "#latent-" + j, class: "latent" }, String(j));
    table(meta, columns, glosses, className, link);
    maps(meta, columns, className);
    cards(meta, columns, className, link);
  };

  // ---- the table of all latents
  const PAGE = 50;
  const table = (meta, columns, glosses, className, link) => {
    const m = meta.latents;
    const [body, search, found] = [document.querySelector("#table tbody"), find("search"), find("found")];
    const heads = [...document.querySelectorAll("#table thead th")];
    if (glosses.length) heads[0].parentNode.append(make("th", { scope: "col" }, "strongest row"));
    const classes = meta.classes.map((name) => name.toLowerCase());
    const texts = glosses.map((text) => text.toLowerCase());
    const orders = new Map(); // all latents by a column, ascending
    let [key, down, page, shown] = ["fired", true, 0, null];

    const byColumn = () => {
      if (!orders.has(key)) {
        const order = Uint32Array.from({ length: m }, (_, j) => j);
        const rank = meta.classes.map((name, label) => [name, label]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
        const places = new Map(rank.map(([, label], place) => [label, place]));
        const column = key === "best" ? Float32Array.from(columns.best, (b) => places.get(b) ?? NaN) : columns[key];
        const none = (j) => Number.isNaN(column[j]) || (key === "near" && column[j] < 0);
        order.sort((a, b) => (none(a) || none(b) ? none(a) - none(b) : column[a] - column[b]) || a - b);
        let known = m;
        while (known > 0 && none(order[known - 1])) known -= 1;
        orders.set(key, [order, known]);
      }
      const [order, known] = orders.get(key);
      return down ? [...order.subarray(0, known)].reverse().concat(...order.subarray(known)) : order;
    };
    const matches = () => {
      const query = search.value.trim().toLowerCase();
      const order = byColumn();
      if (query === "") return order;
      const wanted = classes.map((name) => name.includes(query));
      if (/^\d+$/.test(query)) return order.filter((j) => String(j).startsWith(query));
      const hit = (j) => wanted[columns.best[j]] || (texts[j] ?? "").includes(query) || (query === "dead" && columns.fired[j] === 0);
      return order.filter(hit);
    };
    const row = (j) => {
      const cell = (text) => make("td", { class: "n" }, text);
      const near = columns.near[j];
      return make("tr", {},
        make("th", { class: "n", scope: "row" }, link(j)),
        cell(percent(columns.fired[j] / meta.rows)), cell(number(columns.mean[j])), cell(number(columns.max[j])),
        cell(two(columns.entropy[j])), make("td", {}, columns.best[j] < 0 ? "–" : className(columns.best[j])),
        cell(two(columns.f1[j])), cell(near < 0 ? "–" : link(near)), cell(two(columns.cosine[j])),
        ...(glosses.length ? [make("td", { class: "gloss" }, glosses[j])] : []));
    };
    const render = () => {
      const pages = Math.max(1, Math.ceil(shown.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      body.replaceChildren(...Array.from(shown.slice(page * PAGE, (page + 1) * PAGE), row));
      find("page").textContent = "Page " + count(page + 1) + " of " + count(pages);
      [find("previous").disabled, find("next").disabled] = [page === 0, page === pages - 1];
      found.textContent = count(shown.length) + (shown.length === 1 ? " latent" : " latents");
    };
    const update = () => {
      [shown, page] = [matches(), 0];
      render();
    };
    for (const head of heads) {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const same = key === head.dataset.key;
        [key, down] = [head.dataset.key, same ? !down : !["latent", "best", "near", "entropy"].includes(head.dataset.key)];
        for (const other of heads) other.setAttribute("aria-sort", other === head ? (down ? "descending" : "ascending") : "none");
        update();
      });
    }
    search.addEventListener("input", update);
    for (const [id, step] of [["previous", -1], ["next", 1]]) {
      find(id).addEventListener("click", () => {
        page += step;
        render();
      });
    }
    update();
  };

  // ---- the maps: the nearest dot to the pointer
  const maps = (meta, columns, className) => {
    const of = {
      strength: [(j) => Math.log(columns.fired[j] / meta.rows), (j) => Math.log(columns.mean[j])],
      direction: [(j) => columns.x[j], (j) => columns.y[j]],
    };
    for (const figure of document.querySelectorAll("[data-map]")) {
      const [left, right, top, bottom, x0, x1, y0, y1] = figure.dataset.places.split(" ").map(Number);
      const [svg, note] = [figure.querySelector("svg"), figure.querySelector(".note")];
      const [x, y] = of[figure.dataset.map];
      const clamp = (part) => Math.min(1, Math.max(0, part));
      const place = (j) => [left + clamp((x(j) - x0) / (x1 - x0)) * (right - left), bottom - clamp((y(j) - y0) / (y1 - y0)) * (bottom - top)];
      const places = Array.from(columns.latent, place);
      const ring = draw("circle", { class: "here", r: 6, cx: -99, cy: -99 });
      svg.append(ring);
      const nearest = (event) => {
        const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        let [best, least] = [-1, 400];
        places.forEach(([px, py], j) => {
          const distance = (px - point.x) ** 2 + (py - point.y) ** 2;
          if (distance < least) [best, least] = [j, distance];
        });
        return best;
      };
      svg.addEventListener("pointermove", (event) => {
        const j = nearest(event);
        if (j < 0) return;
        fill(ring, { cx: places[j][0], cy: places[j][1] }, []);
        const best = columns.best[j] < 0 ? "" : "; best class " + className(columns.best[j]) + ", F1 " + two(columns.f1[j]);
        note.textContent = "Latent " + j + ": on " + percent(columns.fired[j] / meta.rows) + " of the rows, mean " + number(columns.mean[j]) + best;
      });
      svg.addEventListener("click", (event) => {
        const j = nearest(event);
        if (j >= 0) location.hash = "latent-" + j;
      });
    }
  };

  // ---- cards
  const cards = (meta, columns, className, link) => {
    const dialog = find("card");
    const shownRow = async (place) => (await json("rows-" + Math.floor(place / meta.piece)))[place % meta.piece];

    const histogram = (first, counts) => {
      const [width, height, most] = [320, 120, Math.max(...counts)];
      const step = width / counts.length;
      const edge = (i) => number(2 ** ((first + i) / 2));
      const bars = counts.map((n, i) => {
        const tall = n ? Math.max(1.5, (n / most) * (height - 4)) : 0;
        return draw("rect", { class: "bar", x: i * step + 0.5, y: height - tall, width: Math.max(1, step - 1), height: tall },
          draw("title", {}, edge(i) + " to " + edge(i + 1) + ": " + count(n) + " rows"));
      });
      const label = "Rows by activation, from " + edge(0) + " to " + edge(counts.length) + ", on a logarithmic scale";
      return make("div", {},
        draw("svg", { viewBox: "0 0 320 140", role: "img", "aria-label": label }, ...bars,
          draw("text", { x: 0, y: 136 }, edge(0)), draw("text", { x: 320, y: 136, class: "end" }, edge(counts.length))));
    };
    const share = (name, part, label) => make("li", {}, make("span", {}, name),
      draw("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: "inline", "aria-hidden": "true" },
        draw("rect", { class: "track", width: 100, height: 10 }), draw("rect", { class: "bar", width: 100 * Math.max(0, part), height: 10 })),
      make("span", { class: "value" }, label));
    const list = (title, items, none) => make("div", {}, make("h3", {}, title),
      items.length ? make("ul", { class: "list share" }, ...items) : make("p", { class: "quiet" }, none));

    const content = async (data, shades) => {
      if (typeof data === "string") return make("span", { class: "text" }, data);
      if (data.t) {
        const shade = (i) => (shades ? "s" + shades[i] : "") + (i === data.i ? " at" : "");
        const passage = make("span", { class: "text" });
        data.t.forEach((token, i) => { // the space before a word is not shaded, and a passage does not begin with one
          const space = token.length - token.trimStart().length;
          const word = space === token.length ? 0 : space;
          if (word && i) passage.append(make("span", {}, token.slice(0, word)));
          passage.append(make(i === data.i && !shades ? "mark" : "span", { class: shade(i) }, token.slice(word)));
        });
        return passage;
      }
      const [rows, columns] = data.g;
      const picture = (await json("pictures-" + Math.floor(data.p / meta.pictures)))[data.p % meta.pictures];
      const overlay = draw("svg", { viewBox: "0 0 " + columns + " " + rows, preserveAspectRatio: "none", "aria-hidden": "true" });
      if (data.c) {
        const [r, c] = data.c;
        overlay.append(
          draw("path", { class: "shade", "fill-rule": "evenodd", d: `M0 0H${columns}V${rows}H0ZM${c} ${r}h1v1h-1Z` }),
          draw("rect", { class: "cell", x: c, y: r, width: 1, height: 1 }));
      }
      const alt = data.c ? "Image with row " + (data.c[0] + 1) + ", column " + (data.c[1] + 1) + " of its patches in light" : "Image";
      return make("span", { class: "picture" }, make("img", { src: picture, alt }), overlay);
    };
    const example = async ([place, value], shades) => {
      const [row, document, position, label, data] = await shownRow(place);
      const words = [position < 0 ? "row " + count(row) : "document " + count(document) + ", position " + count(position)];
      if (label >= 0) words.push(className(label));
      const what = make("div", {}, ...(data === null ? [] : [await content(data, shades)]), make("span", { class: "about" }, words.join(" · ")));
      return make("li", {}, make("span", { class: "value" }, number(value)), what);
    };
    const examples = async (title, of, shades) => make("div", {}, make("h3", {}, title),
      make("ul", { class: "list" }, ...(await Promise.all(of.map((one, i) => example(one, shades[i]))))));
    const near = (of) => of.map(([other, value]) => {
      const name = make("span", {}, link(other), columns.best[other] < 0 ? "" : " " + className(columns.best[other]));
      return share(name, value, two(value));
    });

    const facts = (j) => {
      const of = [["frequency", percent(columns.fired[j] / meta.rows)], ["mean", number(columns.mean[j])], ["max", number(columns.max[j])]];
      if (!Number.isNaN(columns.entropy[j])) of.push(["class entropy", two(columns.entropy[j])]);
      if (columns.best[j] >= 0) of.push(["best class", className(columns.best[j]) + ", F1 " + two(columns.f1[j])]);
      return make("p", { class: "quiet" }, of.map(([name, value]) => name + " " + value).join(" · "));
    };
    const fillCard = async (j) => {
      const card = (await json("cards-" + Math.floor(j / meta.piece)))[j % meta.piece];
      const [first, counts, classes, strongest, tenths, nearest, together, serves, shades] = card;
      const step = (by, text) => {
        const other = (j + by + meta.latents) % meta.latents;
        const button = make("button", { type: "button", "aria-label": text + " latent" }, by < 0 ? "←" : "→");
        button.addEventListener("click", () => { location.hash = "latent-" + other; });
        return button;
      };
      const close = make("button", { type: "button" }, "Close");
      close.addEventListener("click", () => dialog.close());
      const top = make("div", { class: "top" }, make("h2", { id: "card-title", tabindex: "-1" }, "Latent " + j), step(-1, "Previous"), step(1, "Next"), close);
      if (columns.fired[j] === 0) return [top, make("p", {}, "It is dead: it does not fire on any held-out row."), list("Nearest by direction", near(nearest), "Not compared.")];
      const ranks = serves.map(([label, rank]) => className(label) + " (" + (rank + 1) + ".)");
      return [top, facts(j),
        ...(ranks.length ? [make("p", { class: "quiet" }, "Among the first ten latents of " + ranks.join(", "))] : []),
        make("div", { class: "columns two" },
          await examples("Strongest rows", strongest, shades.slice(0, strongest.length)),
          await examples("From strong to weak, one row of each part", tenths, shades.slice(strongest.length))),
        make("div", { class: "columns" },
          make("div", {}, make("h3", {}, "Activations"), histogram(first, counts)),
          ...(classes.length ? [list("Activation by class", classes.map(([label, part]) => share(className(label), part, percent(part))), "")] : []),
          list("Nearest by direction (cosine)", near(nearest), "Only the " + count(meta.compared) + " most frequent latents are compared."),
          list("Fires together with (Jaccard)", near(together), "No other latent fires on the same rows more than once."))];
    };
    const open = async () => {
      const wanted = /^#latent-(\d+)$/.exec(location.hash);
      if (!wanted || Number(wanted[1]) >= meta.latents) return;
      const filled = await fillCard(Number(wanted[1]));
      dialog.replaceChildren(...filled);
      if (!dialog.open) dialog.showModal();
      dialog.scrollTop = 0;
      find("card-title").focus();
    };
    dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    addEventListener("hashchange", open);
    open();
  };

  start().catch((error) => console.error(error));
})();
