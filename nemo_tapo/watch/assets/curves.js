// The curves of all runs that are shown, side by side in panels that share a cursor.

import { LineChart } from "./chart.js";
import { el, select } from "./dom.js";
import { getSeries, runs, visibleRuns, words } from "./data.js";
import { go, state } from "./state.js";

const SECTIONS = [
  ["Training dynamics", "Figure 3 of the paper, and what explains it", [
    ["Training accuracy", "reward/mean"], ["Loss", "loss"], ["Gradient norm", "grad_norm"], ["OTS weight", "tapo/ots_weight_mean"],
    ["Response length", "response_length/mean"], ["KL to the reference", "kl_ref"], ["Entropy", "entropy"], ["Engine gap", "engine_gap"]]],
  ["Construction", "what became of queries and pairs", [
    ["Eligible queries", "tapo/eligible"], ["Mastered queries", "tapo/mastered"], ["Beyond reach", "tapo/beyond"], ["Pairs", "tapo/pairs"],
    ["Parsed constructions", "tapo/parsed"], ["Right constructions", "tapo/correct"], ["Mixed reflection groups", "tapo/mixed_groups"], ["Kept share", "tapo/kept_share"]]],
  ["Held-out problems", "validation between steps", [["Validation accuracy", "validation/accuracy"], ["Best step so far", "validation/best_step"]]],
  ["Memory", "resident, of the processes on the driver's machine", [["Driver", "memory/driver"], ["Engine", "memory/engine"], ["Ranks", "memory/ranks"], ["Graders", "memory/graders"]]],
  ["Supervised", "", [["Negative log-likelihood", "nll"], ["Learning rate", "lr"]]],
];
let charts = [], pointed = null, more = null, layout = "";

export const colourOf = (run) => `c${runs.indexOf(run) % 8}${runs.indexOf(run) >= 8 ? " dashed" : ""}`;

function hover(step) {
  pointed = step;
  for (const [, chart] of charts) chart.hover(step);
}

function pick(step) {
  go({ view: "rollouts", step: String(step), query: "", all: "" });
}

function has(key) {
  return visibleRuns().some((run) => getSeries(run.name).columns[key]);
}

/** Return the steps of the rolling mean that fit the longest run: a tenth of it, at most the paper's 40. */
function automaticWindow() {
  const longest = Math.max(0, ...visibleRuns().map((run) => getSeries(run.name).steps.length));
  return Math.min(Math.max(Math.floor(longest / 10), 1), 40);
}

const windowOf = () => (state.smooth === "" ? automaticWindow() : Math.max(Number(state.smooth) || 1, 1));

/** Return unit and meaning of a metric; those of a family ("grade/<outcome>") are told of all its members. */
function describe(key) {
  const family = Object.keys(words.metrics).find((name) => name.includes("<") && key.startsWith(name.slice(0, name.indexOf("<"))));
  return words.metrics[key] || words.metrics[family] || ["", "no description"];
}

function makeChart(title, key) {
  const [unit, meaning] = describe(key);
  const chart = new LineChart({ title, unit, meaning: `${key}: ${meaning}`, onHover: hover, onPick: pick });
  charts.push([key, chart]);
  return chart.node;
}

function section(title, remark, panels) {
  return el("section", "group", el("h2", "", title, remark ? el("small", "", remark) : null), el("div", "panels", panels));
}

function otherKeys() {
  const known = new Set(SECTIONS.flatMap(([, , panels]) => panels.map(([, key]) => key)));
  const keys = new Set(visibleRuns().flatMap((run) => Object.keys(getSeries(run.name).columns)));
  return [...keys].filter((key) => !known.has(key)).sort();
}

/** Build the panels for the metrics that there are. */
export function render(host) {
  charts = [];
  const parts = SECTIONS.map(([title, remark, panels]) => [title, remark, panels.filter(([, key]) => has(key))])
    .filter(([, , panels]) => panels.length)
    .map(([title, remark, panels]) => section(title, remark, panels.map(([name, key]) => makeChart(name, key))));
  if (!parts.length) {
    host.replaceChildren(el("p", "empty", runs.length ? "No step was recorded yet. The curves appear with the first one." : "No runs were found here."));
    layout = "";
    return;
  }
  const others = otherKeys();
  more = el("details", "group more", el("summary", "", `All other metrics (${others.length})`), el("div", "panels"));
  more.open = state.keys === "all";
  if (more.open) more.lastChild.append(...others.map((key) => makeChart(key, key)));
  more.ontoggle = () => { if (more.open !== (state.keys === "all")) go({ keys: more.open ? "all" : "" }, true); };
  const automatic = automaticWindow();
  const smoothing = select([["", automatic > 1 ? `rolling mean over ${automatic} steps` : "as recorded"], ["1", "each step"], ...[5, 10, 20, 40, 100].map((n) => [String(n), `mean over ${n} steps`])],
    state.smooth, (value) => go({ smooth: value }, true));
  host.replaceChildren(el("div", "toolbar", el("label", "", "Lines ", smoothing), el("span", "hint", "Point at a curve for its values; click on one for that step's rollouts.")), ...parts, more);
  layout = signature();
  update(true);
}

const signature = () => JSON.stringify([visibleRuns().map((run) => run.name), SECTIONS.flatMap(([, , p]) => p.filter(([, key]) => has(key)).map(([, key]) => key)), state.keys, state.keys ? otherKeys() : 0, state.smooth]);

/** Draw the lines again with what was added. */
export function update(force = false) {
  if (!force && signature() !== layout) return false;
  const shown = visibleRuns();
  for (const [key, chart] of charts) {
    chart.draw(shown.map((run) => ({ name: run.name, colour: colourOf(run), xs: getSeries(run.name).steps, ys: getSeries(run.name).columns[key] })), windowOf());
  }
  hover(pointed);
  return true;
}
