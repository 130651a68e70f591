// Where a step's time goes: the parts of a step in their order, over the steps, and as shares of a run.

import { niceTicks } from "./chart.js";
import { duration, el, format, showTip, svg } from "./dom.js";
import { getSamples, getSeries, visibleRuns } from "./data.js";
import { go } from "./state.js";

// [name, class, its seconds of step i]; they follow each other within a step, so they may be stacked. With a lag the
// rollouts run beside updates: of them only what the step waited for follows.
const PARTS = [
  ["rollouts", "p0", (t, lagged) => t(lagged ? "time/collect" : "time/rollouts")],
  ["synthesis, not hidden", "p1", (t, lagged) => (lagged ? 0 : t("time/synthesis"))],
  ["reading examples, other collecting", "p2", (t, lagged) => (lagged ? 0 : t("time/collect") - t("time/rollouts") - t("time/synthesis"))],
  ["scoring", "p3", (t) => t("time/reference") + t("time/teacher") + t("time/old_logprobs")],
  ["update", "p4", (t) => t("time/update")],
  ["weights", "p5", (t) => t("time/weights")],
  ["the rest of the step", "p6", (t) => t("time/step") - ["time/collect", "time/reference", "time/teacher", "time/old_logprobs", "time/update", "time/weights"].reduce((sum, key) => sum + t(key), 0)],
];
const VALIDATION = ["validation", "p8"], BETWEEN = ["records, checkpoint", "p7"]; // after the step
const NAMES = [...PARTS.map(([name, className]) => [name, className]), VALIDATION, BETWEEN];
const HEIGHT = 190, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22, MOST_BARS = 240;
let picked = new Map(); // run name -> index of the step that is shown as a line

/** Return [{name, className, seconds}] of the step at index i of a run. */
function partsOf(run, i) {
  const { columns, steps } = getSeries(run.name), { times } = getSamples(run.name);
  const t = (key) => (columns[key] ? columns[key][i] || 0 : 0);
  const lagged = Number.isFinite(columns["rollouts/lag"]?.[i]);
  const parts = PARTS.map(([name, className, seconds]) => ({ name, className, seconds: Math.max(seconds(t, lagged), 0) }));
  parts.push({ name: VALIDATION[0], className: VALIDATION[1], seconds: t("time/validation") });
  const now = times[steps[i]], before = times[steps[i] - 1], next = columns["time/step"]?.[i];
  const between = now && before && next ? now - before - next - t("time/validation") : 0;
  const resumed = between > 10 * (next || 0) + 60; // the run stood still
  parts.push({ name: BETWEEN[0], className: BETWEEN[1], seconds: resumed ? 0 : Math.max(between, 0) });
  return parts;
}

/** Return bars, each the mean of neighbouring steps where there are too many. */
function makeBars(run) {
  const { steps } = getSeries(run.name), each = Math.ceil(steps.length / MOST_BARS) || 1, bars = [];
  for (let begin = 0; begin < steps.length; begin += each) {
    const end = Math.min(begin + each, steps.length), parts = partsOf(run, begin);
    for (let i = begin + 1; i < end; i++) partsOf(run, i).forEach((part, n) => { parts[n].seconds += part.seconds; });
    for (const part of parts) part.seconds /= end - begin;
    bars.push({ begin, last: end - 1, parts });
  }
  return bars;
}

function stackedChart(run, bars, top) {
  const host = el("div", "plot"), { steps } = getSeries(run.name);
  const draw = () => {
    const width = Math.max(host.clientWidth, 200), slot = (width - LEFT - RIGHT) / bars.length;
    const toY = (seconds) => TOP + (1 - seconds / top) * (HEIGHT - TOP - BOTTOM);
    const root = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": `seconds a step of ${run.name}` });
    for (const tick of niceTicks(0, top)) {
      root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: toY(tick), y2: toY(tick), class: "grid" }));
      root.append(svg("text", { x: LEFT - 6, y: toY(tick) + 4, class: "tick", "text-anchor": "end" }, format(tick)));
    }
    bars.forEach((bar, n) => {
      let sum = 0;
      for (const part of bar.parts) {
        if (!part.seconds) continue;
        const y = toY(sum + part.seconds);
        root.append(svg("rect", { x: (LEFT + n * slot).toFixed(2), width: Math.max(slot - (slot > 4 ? 1 : 0), 0.6).toFixed(2), y, height: Math.max(toY(sum) - y, 0), class: part.className }));
        sum += part.seconds;
      }
    });
    const labels = Math.max(1, Math.floor(width / 70)), every = Math.ceil(bars.length / labels);
    bars.forEach((bar, n) => {
      if (n % every === 0) root.append(svg("text", { x: LEFT + (n + 0.5) * slot, y: HEIGHT - 6, class: "tick", "text-anchor": "middle" }, String(steps[bar.begin])));
    });
    host.replaceChildren(root);
    const barAt = (event) => bars[Math.max(0, Math.min(bars.length - 1, Math.floor((event.offsetX - LEFT) / slot)))];
    host.onpointermove = (event) => { const bar = barAt(event); picked.set(run.name, bar.last); host.dispatchEvent(new CustomEvent("bar", { detail: bar })); };
    host.onclick = (event) => go({ view: "rollouts", run: run.name, step: String(steps[barAt(event).last]), query: "", all: "" });
  };
  host.draw = draw;
  return host;
}

/** One step (or the mean of a few) as a line in which the parts follow each other. */
function stepLine(run, bar) {
  const { steps, columns } = getSeries(run.name), total = bar.parts.reduce((sum, part) => sum + part.seconds, 0) || 1;
  const lane = el("div", "lane");
  for (const part of bar.parts.filter((each) => each.seconds > 0)) {
    const share = part.seconds / total, node = el("span", `span ${part.className}`, share > 0.08 ? `${part.name} ${duration(part.seconds)}` : "");
    node.style.setProperty("flex-grow", String(1000 * share)); // below 1 in sum they would not fill the line
    node.onpointermove = (event) => showTip(`${part.name}: ${duration(part.seconds)}, ${(100 * share).toFixed(1)} %`, event.clientX, event.clientY);
    node.onpointerleave = () => showTip("");
    lane.append(node);
  }
  const title = bar.begin === bar.last ? `Step ${steps[bar.begin]}` : `Steps ${steps[bar.begin]} to ${steps[bar.last]}, mean`;
  const grading = columns["time/grading"]?.[bar.last];
  const aside = grading ? `beside the rollouts: waiting for grades ${duration(grading)}, added up over all that wait at once` : "";
  return el("div", "step-line", el("div", "lane-title", el("b", "", title), ` ${duration(total)}`, aside ? el("span", "hint", aside) : null), lane);
}

function shareTable(shown, barsOf) {
  const sums = shown.map((run) => NAMES.map((_, n) => barsOf.get(run.name).reduce((sum, bar) => sum + bar.parts[n].seconds * (bar.last - bar.begin + 1), 0)));
  const rows = NAMES.map(([name, className], n) => el("tr", "", el("th", "", el("i", `swatch ${className}`), name), shown.map((run, r) => {
    const whole = sums[r].reduce((a, b) => a + b, 0) || 1, steps = getSeries(run.name).steps.length || 1;
    return el("td", "", sums[r][n] ? `${duration(sums[r][n] / steps)}  ` : "-", sums[r][n] ? el("small", "", `${(100 * sums[r][n] / whole).toFixed(1)} %`) : null);
  }))).filter((_, n) => sums.some((sum) => sum[n]));
  return el("div", "scroll", el("table", "shares", el("thead", "", el("tr", "", el("th", "", "mean of a step"), shown.map((run) => el("th", "", run.name)))), el("tbody", "", rows)));
}

/** Draw the time line of every run that is shown. */
export function render(host) {
  const shown = visibleRuns().filter((run) => getSeries(run.name).columns["time/step"]);
  if (!shown.length) {
    host.replaceChildren(el("p", "empty", "No step was timed yet."));
    return;
  }
  const barsOf = new Map(shown.map((run) => [run.name, makeBars(run)]));
  const charts = [];
  const blocks = shown.map((run) => {
    const bars = barsOf.get(run.name), line = el("div");
    const totals = bars.map((bar) => bar.parts.reduce((sum, part) => sum + part.seconds, 0)).sort((a, b) => a - b);
    const top = Math.min(totals.at(-1), 3 * totals[Math.floor(totals.length * 0.9)]) * 1.03 || 1; // one slow step must not flatten the rest
    const chart = stackedChart(run, bars, top);
    const at = bars.find((bar) => bar.begin <= picked.get(run.name) && picked.get(run.name) <= bar.last) || bars.at(-1);
    line.append(stepLine(run, at));
    chart.addEventListener("bar", (event) => line.replaceChildren(stepLine(run, event.detail)));
    charts.push(chart);
    return el("section", "group", el("h2", "", run.name, el("small", "", "seconds a step")), chart, line);
  });
  const used = new Set([...barsOf.values()].flat().flatMap((bar) => bar.parts.filter((part) => part.seconds > 0).map((part) => part.name)));
  const legend = el("div", "legend", NAMES.filter(([name]) => used.has(name)).map(([name, className]) => el("span", "", el("i", `swatch ${className}`), name)));
  host.replaceChildren(legend, ...blocks, el("section", "group", el("h2", "", "On average"), shareTable(shown, barsOf)));
  for (const chart of charts) chart.draw();
}

export const update = () => false;
