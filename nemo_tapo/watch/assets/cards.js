// A query with all its rollouts, its pairs and what was constructed of them.

import { words } from "./data.js";
import { el, format, showTip } from "./dom.js";

const LOW = 0.5, END = "⟨end⟩", PREVIEW = 200; // characters of a response's end

/** Return an outcome's name as a person says it. */
export const label = (outcome) => outcome.replaceAll("_", " ").replace("dropped:", "dropped: ").replace("skipped:", "");

/** Return the first part of an outcome, which has a colour: corrected, still_wrong, dropped, skipped. */
export const tone = (outcome) => outcome.split(":")[0];

export const meaning = (outcome) => words.outcomes[outcome] || "";

function block(title, text, extra = null) {
  if (text === null || text === undefined || text === "") return null;
  return el("div", "block", el("h4", "", title, extra), el("pre", "", text));
}

// ---- tokens, shaded by a number each

/** Return the shade of an OTS weight: -1 at 0.01, 0 at 1, 1 at 10. */
export const weightShade = (weight) => (weight < 1 ? Math.log10(Math.max(weight, 0.01)) / 2 : Math.log10(Math.min(weight, 10)));

/** Return the shade of a log-probability: 0 at 0 nats, -1 at -5 and below. */
export const logprobShade = (logprob) => Math.max(logprob, -5) / 5;

function tokenNodes(tokens, values, from, to, name, shade, isLow) {
  const nodes = [];
  let end = 0;
  tokens.forEach((text, i) => {
    const begin = end;
    end += text.length;
    let cut = text.slice(Math.max(from - begin, 0), Math.max(to - begin, 0));
    if (text === "" && i === tokens.length - 1 && to === end) cut = END; // the end-of-response token has no text
    if (!cut) return;
    const node = el("span", `tok${isLow(values[i]) ? " low" : ""}${cut === END ? " end" : ""}`, cut);
    node.style.setProperty("--w", shade(values[i]).toFixed(2));
    node.dataset.short = Number(values[i].toPrecision(2));
    node.dataset.tip = `${JSON.stringify(text || cut)}: ${name} ${format(values[i])}, token ${i + 1}`;
    nodes.push(node);
  });
  return nodes;
}

/** Show a token's number while the pointer is on it. */
export function setUpTips(host) {
  host.addEventListener("pointermove", (event) => {
    const token = event.target.closest("[data-tip]");
    showTip(token ? token.dataset.tip : "", event.clientX, event.clientY);
  });
  host.addEventListener("pointerleave", () => showTip(""));
}

// ---- rollouts

/** Return one small mark for each rollout of a query. */
export function marks(summary) {
  return el("span", "marks", summary.correct.map((correct, i) => {
    const ungraded = (summary.verdicts[i] || "").startsWith("no_reward_"), reward = summary.rewards[i];
    const node = el("i", ungraded ? "none" : correct ? "right" : reward > 0 ? "part" : "wrong");
    node.title = `rollout ${i}: ${(summary.verdicts[i] || "").replaceAll("_", " ")}, reward ${format(reward)}`;
    return node;
  }));
}

function advantageBar(advantage, most) {
  if (advantage === null || advantage === undefined) return el("span", "adv none", "no row");
  const bar = el("i", advantage < 0 ? "minus" : "plus");
  bar.style.setProperty("--size", `${(50 * Math.abs(advantage)) / (most || 1)}%`);
  return el("span", "adv", el("span", "track", bar), el("b", "", (advantage > 0 ? "+" : "") + format(advantage)));
}

function rolloutText(rollout) {
  if (rollout.text === null) return el("p", "missing", "The text was not recorded.");
  if (!rollout.logprobs) return el("pre", "", rollout.text || "(empty)");
  const length = rollout.tokens.join("").length;
  return el("pre", "shaded", tokenNodes(rollout.tokens, rollout.logprobs, 0, length, "log-probability", logprobShade, (value) => value < -2.3));
}

function rolloutRow(rollout, index, record, most) {
  const pairsBy = (name) => (record.earlier ? [] : record.pairs.flatMap((pair, n) => (pair[name] === index ? [n] : []))).join(", ");
  const wrongOf = pairsBy("wrong_index"), guideOf = pairsBy("right_index"), roles = [wrongOf && `pair ${wrongOf}`, guideOf && `guides ${guideOf}`].filter(Boolean);
  const state = rollout.graded === false ? "none" : rollout.correct ? "right" : "wrong";
  const text = (rollout.text || "").slice(-PREVIEW).trim().replace(/\s+/g, " ");
  const head = el("summary", "", el("span", `verdict ${state}`, state === "right" ? "✓" : state === "wrong" ? "✗" : "–"), el("span", "index", String(index)),
    el("span", "reward", format(rollout.reward)), advantageBar(rollout.advantage, most), el("span", "outcome", rollout.outcome.replaceAll("_", " "), roles.length ? el("small", "", ` ${roles.join(", ")}`) : null),
    el("span", "preview", el("bdi", "", text || (rollout.text === null ? "text not recorded" : ""))), el("span", "size", rollout.length === undefined ? "" : `${rollout.length} tokens`));
  const facts = [rollout.extracted !== undefined && rollout.extracted !== null ? `the verifier read ${rollout.extracted}` : "", rollout.truncated ? "cut off by the length limit" : "", rollout.detail || "", rollout.logprobs ? "shaded by log-probability: the darker, the less likely" : ""].filter(Boolean);
  return el("details", `rollout ${state}`, head, facts.length ? el("p", "remark", facts.join(" · ")) : null, rolloutText(rollout));
}

function rolloutTable(record) {
  if (record.earlier) return el("p", "remark", "These pairs are of rollouts of the step before (pipeline: deferred), which are recorded there.");
  if (!record.rollouts.length) return el("p", "remark", "The rollouts of this query were not recorded, only its pairs.");
  const most = Math.max(...record.rollouts.map((rollout) => Math.abs(rollout.advantage || 0)));
  const right = record.rollouts.filter((rollout) => rollout.correct).length;
  return el("section", "", el("h3", "", `${record.rollouts.length} rollouts`, el("small", "", `${right} right · reward, advantage, verdict, end of the text; click for the whole`)),
    el("div", "rollout-list", record.rollouts.map((rollout, i) => rolloutRow(rollout, i, record, most))));
}

// ---- pairs

function part(pair, name, className, from, to) {
  if (to <= from) return null;
  const text = pair.tokens.length ? tokenNodes(pair.tokens, pair.weights, from, to, "OTS weight", weightShade, (weight) => weight < LOW) : pair.reconstruction.slice(from, to);
  return el("div", `part ${className}`, el("b", "", name), el("pre", "", text));
}

/** Return where `points` characters end in JavaScript's UTF-16 units: the records count as Python does. */
function unitsOf(text, points) {
  let units = 0;
  for (let n = 0; n < points && units < text.length; n++) units += text.codePointAt(units) > 0xffff ? 2 : 1;
  return units;
}

function construction(pair) {
  const text = pair.tokens.length ? pair.tokens.join("") : pair.reconstruction;
  if (!text) return null;
  const kept = unitsOf(text, pair.kept_chars), turn = Math.max(unitsOf(text, pair.turn_chars), kept), built = pair.dropped === null;
  const title = pair.kept_chars ? `Construction, keeps ${Math.round(100 * pair.kept_share)} % of the wrong response` : built ? "Construction: a whole new solution, nothing is kept" : "Construction";
  const shaded = pair.tokens.length ? el("small", "", "tokens shaded by OTS weight (Eq. 7): ", el("i", "tok low sample", "low"), " counts less, ", el("i", "tok high sample", "high"), " more") : null;
  if (shaded) { shaded.children[0].style.setProperty("--w", "-0.7"); shaded.children[1].style.setProperty("--w", "0.7"); }
  return el("div", "block construction", el("h4", "", title, shaded), el("div", "parts", part(pair, "kept", "kept", 0, kept), part(pair, "turn", "turn", kept, turn),
    part(pair, pair.kept_chars || built ? "correction" : "not anchored", "fix", turn, text.length)));
}

function wrongBlock(pair, record) {
  const kept = unitsOf(pair.wrong, pair.kept_chars), own = pair.wrong.slice(0, kept), line = own.endsWith("\n") ? "\n" : "";
  const text = pair.kept_chars ? [el("span", "own", line ? own.slice(0, -1) : own), el("span", "until", "◂ kept up to here"), line, pair.wrong.slice(kept)] : [pair.wrong || " "];
  return el("div", "block", el("h4", "", pair.wrong_index === undefined ? "Wrong response" : `Wrong response (rollout ${pair.wrong_index}${record.earlier ? " of the step before" : ""})`), el("pre", "", text));
}

function pairCard(pair, n, outcome, record) {
  const dropped = pair.dropped !== null;
  const facts = [dropped ? null : ["reward", format(pair.reward)], dropped ? null : ["advantage", pair.advantage === null ? "not trained on" : format(pair.advantage)],
    pair.extracted === null || pair.extracted === undefined ? null : ["verifier read", pair.extracted]].filter(Boolean);
  return el("article", `pair ${tone(outcome)}`,
    el("header", "", el("span", "index", `pair ${n}`), el("span", "badge", label(outcome)), facts.map(([name, value]) => el("span", "fact", `${name} `, el("b", "", value))), el("span", "remark", meaning(outcome))),
    el("div", "two", wrongBlock(pair, record), block(pair.right_index === undefined ? "The right response that guided it" : `The right response that guided it (rollout ${pair.right_index})`, pair.reference)),
    block("Analysis", pair.analysis), construction(pair), dropped ? block("The policy's whole answer to the synthesis prompt", pair.raw || "(nothing was asked)") : null);
}

/** Return everything that was recorded of a query. outcomes: of its pairs, in order. */
export function queryCard(record, outcomes) {
  const zone = record.zone === "mastered" || record.zone === "beyond" ? `skipped:${record.zone}` : "";
  const why = zone ? el("p", "zone", el("span", `badge ${tone(zone)}`, record.zone), ` ${meaning(zone)}.`) : null;
  const pairs = record.pairs.map((pair, n) => pairCard(pair, n, outcomes[n], record));
  return el("div", "query-card", el("div", "two", block("Question", record.question), block("Right answer", record.answer)), why,
    record.note ? el("p", "note", record.note) : null, rolloutTable(record),
    pairs.length ? el("section", "", el("h3", "", `${pairs.length} ${pairs.length === 1 ? "pair" : "pairs"}`, el("small", "", "a wrong rollout, the right one that guided it, and what the policy made of both")), pairs) : null);
}
