// Views, tabs, runs, keys, and the clock that asks for what was added.

import * as curves from "./curves.js";
import { focusRun, getRun, health, isHidden, loadWords, refresh, runs } from "./data.js";
import { button, byId, el } from "./dom.js";
import * as overview from "./overview.js";
import * as rollouts from "./rollouts.js";
import { go, onChange, state } from "./state.js";
import * as timeline from "./timeline.js";

const VIEWS = { curves: ["Curves", curves], rollouts: ["Rollouts", rollouts], time: ["Time", timeline], run: ["Run", overview] };
const SINGLE = ["rollouts", "run"]; // views of one run
const PERIOD = 2000; // ms between two looks at the runs
const KEYS = [["1 2 3 4", "curves, rollouts, time, run"], ["[ ]", "run before, next run"], ["← →", "step before, next step"], ["l", "follow the newest step"], ["j k", "next query, query before"],
  ["/", "search"], ["o", "open or close every rollout"], ["w", "weights as numbers"], ["t", "light or dark"], ["Esc", "leave a field, close this"], ["?", "these keys"]];
const view = byId("view");

const current = () => VIEWS[state.view] || VIEWS.curves;

function drawTabs() {
  byId("tabs").replaceChildren(...Object.entries(VIEWS).map(([name, [text]]) => {
    const node = button(text, "", () => go({ view: name }));
    node.setAttribute("aria-current", name === (VIEWS[state.view] ? state.view : "curves") ? "page" : "false");
    return node;
  }));
}

function toggleRun(name) {
  if (SINGLE.includes(state.view)) return go({ run: name, step: "", query: "" });
  const hidden = new Set(state.hide.split("\n").filter(Boolean));
  if (!hidden.delete(name)) hidden.add(name);
  if (hidden.size < runs.length) go({ hide: [...hidden].join("\n") }, true);
}

function drawRuns() {
  const single = SINGLE.includes(state.view), focus = focusRun();
  byId("runs").replaceChildren(...runs.map((run) => {
    const on = single ? run === focus : !isHidden(run.name), share = run.planned ? Math.min(run.step / run.planned, 1) : 0;
    const bar = el("span", "progress", el("i"));
    bar.firstChild.style.setProperty("--done", `${100 * share}%`);
    const node = button("", `${run.folder}: ${run.state}`, () => toggleRun(run.name), `run ${run.state.replace(" ", "-")}`);
    node.append(el("i", `swatch ${curves.colourOf(run)}`), el("span", "name", run.name), el("span", "state", run.state), el("span", "step", run.planned ? `${run.step}/${run.planned}` : String(run.step)), bar);
    node.setAttribute("aria-pressed", String(on));
    return node;
  }));
  const notes = health.error ? [health.error] : [...health.notes, ...(single ? [focus].filter(Boolean) : runs.filter((run) => !isHidden(run.name)))
    .flatMap((run) => run.notes.map((note) => (runs.length > 1 ? `${run.name}: ${note}` : note)))];
  byId("notes").replaceChildren(...notes.slice(0, 4).map((note) => el("p", "note", note)), ...(notes.length > 4 ? [el("p", "note", `... and ${notes.length - 4} more: see the view "Run".`)] : []));
  byId("pulse").textContent = health.error ? "offline" : runs.some((run) => run.state === "running") ? "live" : "";
  byId("pulse").className = `pulse ${health.error ? "bad" : "good"}`;
}

async function draw() {
  drawTabs();
  drawRuns();
  await current()[1].render(view);
}

async function tick() {
  if (!document.hidden && (await refresh())) {
    drawRuns();
    if (!current()[1].update()) await current()[1].render(view);
  } else if (!document.hidden) drawRuns();
  setTimeout(tick, PERIOD);
}

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  document.documentElement.classList.toggle("light", !dark);
}

function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)"), stored = localStorage.getItem("theme");
  setTheme(stored ? stored === "dark" : system.matches);
  system.onchange = () => localStorage.getItem("theme") || setTheme(system.matches);
  byId("theme").onclick = () => {
    const dark = !document.documentElement.classList.contains("dark");
    localStorage.setItem("theme", dark ? "dark" : "light");
    setTheme(dark);
  };
}

function setUpKeys() {
  const dialog = byId("keys"), names = Object.keys(VIEWS);
  dialog.append(el("h2", "", "Keys"), el("dl", "", KEYS.flatMap(([key, text]) => [el("dt", "", key.split(" ").map((each) => el("kbd", "", each))), el("dd", "", text)])));
  dialog.onclick = () => dialog.close();
  const help = () => (dialog.open ? dialog.close() : dialog.showModal());
  const nextRun = (by) => { const at = runs.indexOf(focusRun()); const next = runs[(at + by + runs.length) % runs.length]; if (next) go({ run: next.name, step: "", query: "" }); };
  const keys = { "?": help, t: () => byId("theme").click(), "[": () => nextRun(-1), "]": () => nextRun(1), ...Object.fromEntries(names.map((name, i) => [String(i + 1), () => go({ view: name })])) };
  byId("help").onclick = help;
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement.blur();
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const action = keys[event.key] || (state.view === "rollouts" && rollouts.keys[event.key]);
    if (action) { event.preventDefault(); action(); }
  });
}

onChange((before) => {
  drawTabs();
  drawRuns();
  const rebuilt = before.view !== state.view || before.run !== state.run || before.hide !== state.hide;
  if (rebuilt || !current()[1].update()) current()[1].render(view);
  if (before.view !== state.view) scrollTo(0, 0);
});
let resizing;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => { if (!current()[1].update(true)) current()[1].render(view); }, 120); });

setUpTheme();
setUpKeys();
await Promise.all([loadWords(), refresh()]);
if (state.run && !getRun(state.run)) go({ run: "" }, true);
await draw();
document.documentElement.dataset.ready = "yes";
tick();
