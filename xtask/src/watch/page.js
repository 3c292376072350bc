"use strict";
// Asks for the state and shows what has changed. The report is replaced by itself as long as nobody has used it; from then
// on a button offers the newer one, and an open card is opened again there.
(() => {
  const find = (id) => document.getElementById(id);
  const PAUSE = 2000;
  const frame = find("report");
  let offered = null, shown = null, touched = false, drawn = null;

  const text = (id, words) => { if (find(id).textContent !== words) find(id).textContent = words; };
  const count = (n) => n.toLocaleString("en");
  const short = (value) => value === null || value === undefined ? "–"
    : Number.isInteger(value) || Math.abs(value) >= 100 ? count(Math.round(value)) : value.toPrecision(3);

  const number = (label, value) => {
    const [box, dt, dd] = ["div", "dt", "dd"].map((name) => document.createElement(name));
    dt.textContent = label;
    dd.textContent = value;
    box.append(dt, dd);
    return box;
  };

  const training = (state) => {
    const key = JSON.stringify([state.training, state.held_out]);
    if (key === drawn) return;
    drawn = key;
    const of = (record) => record ?? {};
    const both = (name) => `${short(of(state.training)[name])} training, ${short(of(state.held_out)[name])} held out`;
    find("numbers").replaceChildren(number("FVU", both("fvu")), number("L0", both("l0")), number("dead latents", both("dead")));
    for (const [id, label] of [["fvu", "FVU"], ["l0", "L0"], ["dead", "Dead latents"]]) {
      const picture = find(id);
      picture.hidden = state.training === null;
      picture.alt = `${label} by step, now ${both(id)}`;
      if (!picture.hidden) picture.src = `/${id}.svg?${of(state.training).step}-${of(state.held_out).step}`;
    }
  };

  const load = (name) => {
    let card = "";
    try { card = frame.contentWindow.location.hash; } catch { /* nothing was loaded */ }
    shown = name;
    touched = false;
    find("newer").hidden = true;
    frame.hidden = false;
    frame.contentWindow.location.replace(`/report.html?${name}${card}`);
  };
  frame.addEventListener("load", () => {
    const inside = frame.contentWindow;
    const used = () => { touched = true; };
    for (const event of ["pointerdown", "keydown", "wheel", "touchstart"]) inside.addEventListener(event, used, { passive: true });
    if (inside.location.hash) touched = true;
  });
  find("newer").addEventListener("click", () => load(offered));

  const report = (state) => {
    text("about", state.about);
    find("failure").hidden = state.failure === null;
    text("failure", state.failure ?? "");
    offered = state.shown;
    if (offered === null || offered === shown) return;
    if (shown === null || !touched) load(offered);
    text("newer", state.checkpoint === null ? "Show the trained model" : `Show step ${count(state.checkpoint)}`);
    find("newer").hidden = offered === shown;
  };

  const look = async () => {
    try {
      const answer = await fetch("/state", { cache: "no-store" });
      const state = await answer.json();
      document.title = `${state.run}: step ${count(state.step)}`;
      text("run", state.run);
      text("steps", `step ${count(state.step)}${state.steps === null ? "" : ` of ${count(state.steps)}`}`);
      find("progress").max = state.steps ?? 1;
      find("progress").value = state.steps === null ? 0 : state.step;
      text("words", state.words);
      training(state);
      report(state);
    } catch {
      text("words", "No answer: cargo xtask watch has ended. What is shown stays.");
    }
    setTimeout(look, document.hidden ? 5 * PAUSE : PAUSE);
  };
  look();
})();
