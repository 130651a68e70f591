// Line charts: one value a step of several runs. Drawn as SVG; thousands of steps are thinned to the pixels there are.

import { el, format, svg } from "./dom.js";

const HEIGHT = 170, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22;

/** Return 3 to 6 round numbers that span [low, high]. */
export function niceTicks(low, high, count = 4) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

/** Return the mean of the last `window` values at each place; nulls are left out. */
export function smooth(values, window) {
  const out = new Array(values.length).fill(null);
  let sum = 0, count = 0;
  for (let i = 0; i < values.length; i++) {
    if (values[i] !== null) { sum += values[i]; count++; }
    const gone = i >= window ? values[i - window] : null;
    if (gone !== null && i >= window) { sum -= gone; count--; }
    out[i] = values[i] === null || !count ? null : sum / count;
  }
  return out;
}

/** Return the path of a line; where many steps share a pixel, their lowest and highest stand for them. */
function linePath(xs, ys, toX, toY) {
  let path = "", pixel = null, low = 0, high = 0, last = 0, pen = false;
  const flush = () => {
    if (pixel === null) return;
    const points = high - low < 0.5 ? [last] : [low, high, last];
    for (const y of points) { path += `${pen ? "L" : "M"}${pixel} ${y.toFixed(1)}`; pen = true; }
    pixel = null;
  };
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null || ys[i] === undefined) { flush(); continue; }
    const x = Math.round(toX(xs[i]) * 2) / 2, y = toY(ys[i]);
    if (x !== pixel) { flush(); pixel = x; low = high = y; }
    low = Math.min(low, y); high = Math.max(high, y); last = y;
  }
  flush();
  return path;
}

/** One panel: a title, its values at the step that is pointed at, and the lines. */
export class LineChart {
  constructor({ title, unit = "", meaning = "", onHover, onPick }) {
    this.title = title;
    this.values = el("span", "values");
    this.host = el("div", "plot");
    const head = el("div", "panel-head", el("h3", "", title), unit && unit !== title.toLowerCase() ? el("span", "unit", unit) : null, this.values);
    head.title = meaning;
    this.node = el("figure", "panel", head, this.host);
    this.lines = [];
    this.host.onpointermove = (event) => this.toStep && onHover(this.toStep(event.offsetX));
    this.host.onpointerleave = () => onHover(null);
    this.host.onclick = (event) => this.toStep && onPick(this.toStep(event.offsetX));
  }

  /** lines: [{name, colour (a class), xs, ys}]; window: steps of the rolling mean, 1 for none. */
  draw(lines, window) {
    this.lines = lines.filter((line) => line.ys && line.ys.some((y) => y !== null));
    this.node.classList.toggle("bare", this.lines.length === 0);
    this.node.classList.toggle("many", lines.length > 2);
    const width = Math.max(this.host.clientWidth, 160);
    const root = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": this.title });
    this.host.replaceChildren(root);
    this.toStep = null;
    if (!this.lines.length) {
      root.append(svg("text", { x: width / 2, y: HEIGHT / 2, class: "none", "text-anchor": "middle" }, "not recorded"));
      return;
    }
    const [firstStep, lastStep] = this.#range((line) => line.xs.filter((_, i) => line.ys[i] !== null));
    let [low, high] = this.#range((line) => line.ys);
    if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
    const pad = (high - low) * 0.05;
    const toX = (x) => LEFT + ((x - firstStep) / (lastStep - firstStep || 1)) * (width - LEFT - RIGHT);
    const toY = (y) => TOP + (1 - (y - low + pad) / (high - low + 2 * pad)) * (HEIGHT - TOP - BOTTOM);
    for (const tick of niceTicks(low - pad, high + pad)) {
      root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: toY(tick), y2: toY(tick), class: "grid" }));
      root.append(svg("text", { x: LEFT - 6, y: toY(tick) + 4, class: "tick", "text-anchor": "end" }, format(tick)));
    }
    for (const tick of niceTicks(firstStep, lastStep).filter(Number.isInteger)) {
      root.append(svg("text", { x: toX(tick), y: HEIGHT - 6, class: "tick", "text-anchor": "middle" }, String(tick)));
    }
    for (const line of this.lines) {
      if (window > 1) {
        root.append(svg("path", { d: linePath(line.xs, line.ys, toX, toY), class: `line raw ${line.colour}` }));
        line.smoothed = smooth(line.ys, window);
      } else line.smoothed = line.ys;
      root.append(svg("path", { d: linePath(line.xs, line.smoothed, toX, toY), class: `line ${line.colour}` }));
      line.ys.forEach((y, i) => { // a point without neighbours is no line
        const alone = [i - 1, i + 1].every((n) => line.ys[n] === null || line.ys[n] === undefined);
        if (y !== null && alone) root.append(svg("circle", { cx: toX(line.xs[i]), cy: toY(y), r: 3, class: `dot ${line.colour}` }));
      });
    }
    this.cursor = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
    this.dots = this.lines.map((line) => svg("circle", { r: 3.5, class: `dot ${line.colour}`, visibility: "hidden" }));
    root.append(this.cursor, ...this.dots);
    Object.assign(this, { toX, toY });
    this.toStep = (x) => Math.max(firstStep, Math.min(lastStep, Math.round(firstStep + ((x - LEFT) / (width - LEFT - RIGHT)) * (lastStep - firstStep))));
    this.hover(null);
  }

  /** Mark a step; null shows the last values. */
  hover(step) {
    if (!this.toStep) { this.values.replaceChildren(); return; }
    this.cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.toX(step));
    const shown = this.lines.map((line, n) => {
      let at = step === null ? line.ys.findLastIndex((y) => y !== null) : line.xs.indexOf(step);
      const value = at < 0 ? null : line.smoothed[at];
      const dot = this.dots[n];
      dot.setAttribute("visibility", step !== null && value !== null ? "visible" : "hidden");
      if (step !== null && value !== null) { dot.setAttribute("cx", this.toX(step)); dot.setAttribute("cy", this.toY(value)); }
      const node = el("b", line.colour, format(value));
      node.title = line.name;
      return node;
    });
    this.values.replaceChildren(...shown.slice(0, 6));
  }

  #range(pick) {
    let low = Infinity, high = -Infinity;
    for (const line of this.lines) for (const v of pick(line)) if (v !== null && v !== undefined) { low = Math.min(low, v); high = Math.max(high, v); }
    return [low, high];
  }
}
