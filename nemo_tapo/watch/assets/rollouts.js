// Step -> query -> rollouts and pairs: a strip of steps, a filtered list of queries, and the query that is chosen.

import { label, marks, meaning, queryCard, setUpTips, tone } from "./cards.js";
import { ask, focusRun, getSamples, getSeries, words } from "./data.js";
import { button, byId, el, format, select, svg } from "./dom.js";
import { go, state } from "./state.js";

const PAGE = 60, FILTERS = ["outcome", "verdict", "group", "text"];
const GROUPS = [["", "any rewards"], ["mixed", "some right, some wrong"], ["all_right", "all right"], ["all_wrong", "all wrong"], ["partial", "partial rewards"]];
let found = [], cursor = "", asked = "", shownQuery = "", counter = 0, host = null, abort = null;
const parts = {};

const run = () => focusRun();
const steps = () => (run() ? getSamples(run().name).steps : []);
/** Return the step that is shown: the chosen one, else the newest, which follows the run. */
const step = () => (state.step === "" ? steps().at(-1) : Number(state.step));
const filtered = () => FILTERS.some((name) => state[name]);

function toStep(number) {
  const known = steps();
  if (!known.length) return;
  const nearest = known.reduce((best, each) => (Math.abs(each - number) < Math.abs(best - number) ? each : best), known[0]);
  go({ step: String(nearest), query: "", all: "" }, true);
}

function moveStep(by) {
  const known = steps(), at = known.indexOf(step());
  const next = known[Math.max(0, Math.min(known.length - 1, (at < 0 ? known.length : at) + by))];
  if (next !== undefined) go({ step: String(next), query: "", all: "" }, true);
}

function drawStrip() {
  const { steps: xs, columns } = getSeries(run().name), ys = columns["reward/mean"] || [], known = steps();
  const width = Math.max(parts.strip.clientWidth, 160), height = 44, first = known[0], last = known.at(-1);
  const toX = (x) => 6 + ((x - first) / (last - first || 1)) * (width - 12);
  const root = svg("svg", { width, height, role: "img", "aria-label": "training accuracy over the steps" });
  const shown = ys.filter((y, i) => y !== null && y !== undefined && xs[i] >= first);
  const low = shown.reduce((a, b) => Math.min(a, b), Infinity), high = shown.reduce((a, b) => Math.max(a, b), -Infinity);
  const toY = (y) => height - 6 - ((y - low) / (high - low || 1)) * (height - 12);
  let path = "";
  xs.forEach((x, i) => { if (ys[i] !== null && ys[i] !== undefined && x >= first) path += `${path ? "L" : "M"}${toX(x).toFixed(1)} ${toY(ys[i]).toFixed(1)}`; });
  root.append(svg("path", { d: path, class: "strip-line" }));
  const x = toX(step());
  root.append(svg("line", { x1: x, x2: x, y1: 0, y2: height, class: "strip-at" }));
  parts.strip.replaceChildren(root);
  const pick = (event) => toStep(Math.round(first + ((event.offsetX - 6) / (width - 12)) * (last - first)));
  parts.strip.onpointerdown = pick;
  parts.strip.onpointermove = (event) => { if (event.buttons) pick(event); };
}

function drawHead() {
  const at = getSeries(run().name).steps.indexOf(step()), { columns } = getSeries(run().name);
  const value = (key) => (at >= 0 && columns[key] ? columns[key][at] : null);
  const facts = [["accuracy", "reward/mean"], ["eligible", "tapo/eligible"], ["mastered", "tapo/mastered"], ["beyond", "tapo/beyond"], ["pairs", "tapo/pairs"], ["parsed", "tapo/parsed"], ["right", "tapo/correct"]]
    .filter(([, key]) => value(key) !== null).map(([name, key]) => el("span", "fact", `${name} `, el("b", "", format(value(key)))));
  parts.number.value = String(step());
  parts.live.classList.toggle("on", state.step === "");
  parts.facts.replaceChildren(...facts);
}

function outcomeEntries() {
  const names = Object.keys(words.outcomes);
  return [["", "any outcome"], ...names.filter((name) => !name.includes(":")).map((name) => [name, label(name)]), ["dropped", "dropped, any reason"], ["skipped", "not constructed, any reason"],
    ...names.filter((name) => name.includes(":")).map((name) => [name, label(name)])];
}

function verdictEntries() {
  const keys = Object.keys(getSeries(run().name).columns).filter((key) => key.startsWith("grade/")).map((key) => key.slice(6));
  return [["", "any verdict"], ...keys.sort().map((key) => [key, `has ${key.replaceAll("_", " ")}`])];
}

function filterBar() {
  const set = (name) => (value) => go({ [name]: value.trim(), query: "" }, true);
  const text = el("input");
  Object.assign(text, { type: "search", id: "search", placeholder: "Search question, responses, analysis ...   ( / )", value: state.text, autocomplete: "off" });
  let timer;
  text.oninput = () => { clearTimeout(timer); timer = setTimeout(() => set("text")(text.value), 250); };
  const scope = select([["", "in this step"], ["1", "in all steps"]], state.all, (value) => go({ all: value, query: "" }, true));
  const clear = button("clear", "Remove all filters", () => go({ outcome: "", verdict: "", group: "", text: "", query: "" }, true), "quiet");
  clear.hidden = !filtered();
  return el("div", "filters", select(outcomeEntries(), state.outcome, set("outcome")), select(verdictEntries(), state.verdict, set("verdict")), select(GROUPS, state.group, set("group")), text, scope, clear);
}

function queryRow(query, position) {
  const chips = query.outcomes.length ? query.outcomes : query.zone === "mastered" || query.zone === "beyond" ? [`skipped:${query.zone}`] : [];
  const node = el("button", "query-row", el("span", "row-head", el("b", "", query.uid), state.all ? el("span", "of-step", `step ${query.step}`) : null, query.earlier ? el("span", "of-step", "pairs of the step before") : null,
    el("span", "chips", chips.map((name) => { const dot = el("i", `dot ${tone(name)}`); dot.title = `${label(name)}: ${meaning(name)}`; return dot; }))),
    marks(query), el("span", "question", query.question.replace(/\s+/g, " ")));
  node.type = "button";
  node.onclick = () => choose(position);
  return node;
}

function choose(position) {
  const query = found[position];
  if (query) go({ query: `${query.step}:${query.index}` }, true);
}

/** Return the place of a query that shows the method: one with a right construction, else one with pairs. */
function mostTelling() {
  const corrected = found.findIndex((query) => query.outcomes.includes("corrected"));
  return Math.max(corrected >= 0 ? corrected : found.findIndex((query) => query.outcomes.length), 0);
}

const position = () => found.findIndex((query) => `${query.step}:${query.index}` === state.query);

function drawList() {
  parts.list.replaceChildren(...found.map(queryRow));
  markChosen();
}

function markChosen() {
  const at = position();
  [...parts.list.children].forEach((node, i) => node.setAttribute("aria-current", String(i === at)));
  parts.list.children[at]?.scrollIntoView({ block: "nearest" });
}

async function search(goOn = false) {
  const mine = ++counter, name = run().name;
  if (abort) abort.abort();
  abort = new AbortController();
  if (!goOn) { found = []; cursor = ""; }
  const want = found.length + PAGE, notes = new Set();
  parts.count.textContent = "searching ...";
  try {
    do {
      const answer = await ask("queries", { run: name, step: state.all ? "" : step(), cursor, limit: want - found.length, ...Object.fromEntries(FILTERS.map((f) => [f, state[f]])) }, abort.signal);
      if (mine !== counter) return;
      found.push(...answer.queries);
      cursor = answer.cursor;
      answer.notes.forEach((note) => notes.add(note));
      parts.count.textContent = `${found.length} found, searched back to step ${cursor.split(":")[0]} ...`;
    } while (cursor && found.length < want);
    const noun = found.length === 1 ? "query" : "queries";
    parts.count.textContent = found.length ? `${found.length}${cursor ? "+" : ""} ${noun}` : filtered() ? "No query fits." : "Nothing was recorded.";
  } catch (error) {
    if (error.name === "AbortError") return;
    notes.add(error.message);
    parts.count.textContent = "";
  }
  const told = [...notes];
  parts.notes.replaceChildren(...told.slice(0, 3).map((note) => el("p", "note", note)), ...(told.length > 3 ? [el("p", "note", `... and ${told.length - 3} more steps that cannot be read in full.`)] : []));
  parts.more.hidden = !cursor;
  drawList();
  if (position() < 0 && found.length && innerWidth > 900) choose(mostTelling());
  else drawQuery();
}

async function drawQuery() {
  const [ofStep, index] = state.query.split(":");
  parts.panes.classList.toggle("chosen", state.query !== "");
  markChosen();
  const key = `${run().name}\n${state.query}\n${getSamples(run().name).version}`;
  if (!state.query || key === shownQuery) {
    if (!state.query) { shownQuery = ""; parts.detail.replaceChildren(el("p", "empty", found.length ? "Choose a query." : "")); }
    return;
  }
  shownQuery = key;
  try {
    const record = await ask("query", { run: run().name, step: ofStep, index });
    if (key !== shownQuery) return;
    const outcomes = record.pairs.map((pair) => (pair.dropped !== null ? `dropped:${pair.dropped}` : (record.correct_at ?? pair.correct_at ?? null) === null ? (pair.reward > 0 ? "corrected" : "still_wrong") : pair.reward >= (pair.correct_at ?? record.correct_at) ? "corrected" : "still_wrong"));
    const head = el("div", "detail-head", button("←", "Back to the list", () => go({ query: "" }, true), "icon back"), el("h2", "", record.uid, el("small", "", `step ${record.step}`)),
      button("open all", "Open or close every rollout (o)", toggleAll, "quiet"), button("weights", "Weights as numbers (w)", toggleNumbers, "quiet"), button("copy link", "Copy a link to this query", copyLink, "quiet"));
    parts.detail.replaceChildren(head, queryCard(record, outcomes));
    parts.detail.scrollTop = 0;
    if (innerWidth <= 900) parts.detail.scrollIntoView({ block: "start" });
  } catch (error) {
    parts.detail.replaceChildren(el("p", "note", error.message));
  }
}

function toggleAll() {
  const all = [...parts.detail.querySelectorAll("details")], open = !all.every((each) => each.open);
  for (const each of all) each.open = open;
}

const toggleNumbers = () => parts.detail.classList.toggle("numbers");

async function copyLink(event) {
  const target = event.currentTarget;
  go({ step: String(step()) }, true); // a link must not follow the run
  await navigator.clipboard.writeText(location.href);
  target.textContent = "copied";
  setTimeout(() => { target.textContent = "copy link"; }, 1500);
}

const signature = () => JSON.stringify([run()?.name, state.all ? "all" : step(), FILTERS.map((name) => state[name]), run() && getSamples(run().name).version]);

/** Build the view. */
export function render(where) {
  host = where;
  [asked, shownQuery, found] = ["", "", []];
  if (!run() || !steps().length) {
    host.replaceChildren(el("p", "empty", run() ? `No rollouts of ${run().name} are recorded (yet): a supervised stage, a run with rollouts_gib=0, or one of an earlier version.` : "No runs were found here."));
    return;
  }
  parts.strip = el("div", "strip");
  parts.number = el("input", "step-number");
  Object.assign(parts.number, { type: "number", title: "Step", ariaLabel: "Step" });
  parts.number.onchange = () => toStep(Number(parts.number.value));
  parts.live = button("follow", "Show the newest step and go on with the run (l)", () => go({ step: "", query: "" }, true), "live");
  parts.facts = el("div", "step-facts");
  parts.list = el("div", "query-list");
  parts.count = el("span", "count");
  parts.count.setAttribute("role", "status");
  parts.notes = el("div");
  parts.more = button("more", "Show more queries", () => search(true), "more-button");
  parts.detail = el("div", "detail");
  parts.panes = el("div", "panes", el("div", "side", parts.count, parts.notes, parts.list, parts.more), parts.detail);
  parts.filters = el("div");
  setUpTips(parts.detail);
  host.replaceChildren(el("div", "stepper", button("‹", "Step before (←)", () => moveStep(-1), "icon"), parts.number, button("›", "Next step (→)", () => moveStep(1), "icon"), parts.live, parts.strip), parts.facts, parts.filters, parts.panes);
  update();
}

/** Show what the state or the run has changed. */
export function update() {
  if (!run() || !steps().length || !parts.strip?.isConnected) return false;
  drawStrip();
  drawHead();
  const now = signature();
  if (now !== asked) {
    asked = now;
    if (document.activeElement?.id !== "search") parts.filters.replaceChildren(filterBar());
    search();
  } else drawQuery();
  return true;
}

export const keys = {
  ArrowLeft: () => moveStep(-1), ArrowRight: () => moveStep(1), l: () => go({ step: "", query: "" }, true),
  j: () => choose(position() + 1), k: () => choose(Math.max(position() - 1, 0)), o: toggleAll, w: toggleNumbers,
  "/": () => byId("search")?.focus(),
};
