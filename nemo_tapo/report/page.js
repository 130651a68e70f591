"use strict";
// The trajectories: filtered, then drawn one page of cards at a time from the JSON in this file. Text reaches the
// page through textContent alone, so nothing that a model wrote is ever read as HTML.
const records = JSON.parse(document.getElementById("records").textContent).sort((a, b) => b.step - a.step); // newest first
const outcomes = JSON.parse(document.getElementById("outcomes").textContent); // {outcome: [count, meaning]}
const PAGE = 10, LOW = 0.5, END = "⟨end⟩";
const $ = (id) => document.getElementById(id);
let found = records, page = 0, current = -1;

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

const sentence = (outcome) => (outcomes[outcome] || [0, ""])[1];
const label = (outcome) => outcome.replaceAll("_", " ").replace(":", ": ").replace("skipped", "not constructed");
const number = (x) => (x === null || x === undefined ? "-" : String(Math.round(x * 1000) / 1000));

// ---- one record -> one card

function lineBreak(token) {
  const mark = el("span", "nl", "↵");
  mark.setAttribute("aria-hidden", "true");
  if (!token.classList.contains("breaks")) mark.dataset.short = token.dataset.short; // its number, before the line ends
  token.classList.add("breaks");
  return [mark, "\n"];
}

function tokens(record, from, to) {
  const nodes = [];
  let end = 0;
  record.tokens.forEach((text, i) => {
    const begin = end;
    end += text.length;
    let cut = text.slice(Math.max(from - begin, 0), Math.max(to - begin, 0));
    if (text === "" && i === record.tokens.length - 1 && to === end) cut = END; // the end-of-response token has no text
    if (!cut) return;
    const weight = record.weights[i];
    const node = el("span", "tok" + (weight < LOW ? " low" : "") + (cut === END ? " end" : ""));
    // -1 at 0.01, 0 at 1, 1 at 10: the shade follows the logarithm
    const shade = weight < 1 ? Math.log10(Math.max(weight, 0.01)) / 2 : Math.log10(Math.min(weight, 10));
    node.style.setProperty("--w", shade.toFixed(2));
    node.dataset.w = number(weight);
    node.dataset.short = String(Number(weight.toPrecision(2)));
    node.dataset.i = i;
    node.dataset.text = text || cut;
    for (const piece of cut.split(/(\n)/)) {
      node.append(...(piece === "\n" ? lineBreak(node) : [piece]));
    }
    nodes.push(node);
  });
  return nodes;
}

function part(record, name, className, from, to) {
  if (to <= from) return null;
  const body = record.tokens.length ? tokens(record, from, to) : [record.reconstruction.slice(from, to)];
  return el("div", "part " + className, el("b", "", name), el("div", "text", ...body));
}

function block(title, text, className) {
  if (text === null || text === undefined || text === "") return null;
  return el("div", "", el("h4", "", title), el("pre", "text box " + (className || ""), text));
}

function wrongResponse(record) {
  const node = block("Wrong response", record.wrong || " ");
  if (record.kept_chars) {
    const mark = el("span", "until", "◂ kept up to here");
    node.lastChild.replaceChildren(el("span", "own", record.wrong.slice(0, record.kept_chars).replace(/\n$/, "")), " ", mark,
      record.wrong.slice(0, record.kept_chars).endsWith("\n") ? "\n" : "", record.wrong.slice(record.kept_chars));
  }
  return node;
}

function facts(...pairs) {
  const nodes = pairs.filter(([, value]) => value !== null).map(([name, value]) => el("span", "facts", name + " ", el("b", "", value)));
  return nodes;
}

function reconstruction(record) {
  const length = record.tokens.length ? record.tokens.join("").length : record.reconstruction.length;
  if (!length) return null;
  const title = record.kept_chars ? `Reconstruction (keeps ${Math.round(100 * record.kept_share)} % of the wrong response)`
    : record.dropped === null ? "Reconstruction (a whole new solution: nothing of the wrong response is kept)" : "Reconstruction";
  const rest = record.kept_chars || record.dropped === null ? "correction" : "not anchored";
  return el("div", "", el("h4", "", title), el("div", "box whole",
    ...[part(record, "kept", "kept", 0, record.kept_chars),
      part(record, "turn", "turn", record.kept_chars, record.turn_chars),
      part(record, rest, "fix", record.turn_chars, length)].filter(Boolean)));
}

function pairCard(record) {
  const dropped = record.dropped !== null;
  const trained = record.advantage === null && !dropped ? "none: not trained on" : number(record.advantage);
  const head = facts(["step", String(record.step)], ["group", record.group], ["pair", record.uid],
    ["reward", dropped ? null : number(record.reward)], ["advantage", dropped ? null : trained],
    ["verifier read", record.extracted === null || record.extracted === undefined ? null : record.extracted]);
  return [head, [
    el("div", "pair", block("Question", record.question), block("Right answer", record.answer)),
    el("div", "pair", wrongResponse(record), block("Correct reference (shown for the rewriting only)", record.reference)),
    block("Analysis", record.analysis), reconstruction(record),
    dropped ? block("The policy's whole answer to the synthesis prompt", record.raw || "(nothing was asked)") : null]];
}

function skippedCard(record) {
  const correct = record.rewards.map((r) => record.correct_at == null ? r > 0 : r >= record.correct_at);
  const marks = el("span", "rewards", ...correct.map((c) => el("i", c ? "r1" : "r0", c ? "✓" : "✗")));
  const right = correct.filter((c) => c).length;
  const head = [...facts(["step", String(record.step)], ["query", record.uid]),
    el("span", "facts", `${right} of ${record.rewards.length} rollouts right `, marks)];
  return [head, [
    el("div", "pair", block("Question", record.question), block("Right answer", record.answer)),
    el("div", "pair", block("A wrong rollout", record.wrong || "(there was none)"), block("A right rollout", record.right || "(there was none)"))]];
}

function card(record) {
  const [head, body] = record.kind === "skipped" ? skippedCard(record) : pairCard(record);
  const why = sentence(record.outcome);
  const node = el("article", "card " + record.outcome.split(":")[0],
    el("h3", "", el("span", "badge", label(record.outcome)), ...head),
    why ? el("p", "why", why[0].toUpperCase() + why.slice(1) + ".") : null, ...body);
  node.tabIndex = -1;
  return node;
}

// ---- filters, pages, keys

function textOf(record) {
  if (record.haystack === undefined) {
    const parts = [record.uid, record.question, record.answer, record.wrong, record.reference, record.right, record.analysis,
      record.tokens && record.tokens.length ? record.tokens.join("") : record.reconstruction, record.raw];
    record.haystack = parts.filter(Boolean).join("\n").toLowerCase();
  }
  return record.haystack;
}

function filter() {
  const step = $("step").value, outcome = $("outcome").value, words = $("search").value.trim().toLowerCase();
  found = records.filter((r) => (step === "" || String(r.step) === step)
    && (outcome === "" || r.outcome === outcome || r.outcome.startsWith(outcome + ":"))
    && (!words || textOf(r).includes(words)));
  show(0);
}

function show(to) {
  const pages = Math.max(Math.ceil(found.length / PAGE), 1);
  page = Math.min(Math.max(to, 0), pages - 1);
  current = -1;
  $("cards").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
  const text = records.length === 0 ? "No trajectories were recorded."
    : found.length === 0 ? `None of ${records.length} records fits.`
      : `${found.length} of ${records.length} records, newest step first, page ${page + 1} of ${pages}`;
  document.querySelectorAll(".count").forEach((node) => { node.textContent = text; });
  document.querySelectorAll("[data-go]").forEach((b) => { b.disabled = page + Number(b.dataset.go) < 0 || page + Number(b.dataset.go) >= pages; });
}

function turn(by) {
  const before = page;
  show(page + by);
  return page !== before;
}

function move(by) {
  let next = current + by;
  const cards = $("cards").children;
  if (next < 0 || next >= cards.length) {
    if (!turn(by)) return;
    next = by > 0 ? 0 : $("cards").children.length - 1;
  }
  current = next;
  const node = $("cards").children[current];
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "start" });
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => { const o = el("option", "", text); o.value = value; return o; }));
}

function setUpFilters() {
  const steps = [...new Set(records.map((r) => r.step))];
  options($("step"), [["", `all (${steps.length})`], ...steps.map((s) => [String(s), String(s)])]);
  const whole = { dropped: 0, skipped: 0 };
  for (const [name, [count]] of Object.entries(outcomes)) if (name.includes(":")) whole[name.split(":")[0]] += count;
  const entries = Object.entries(outcomes).filter(([, [count]]) => count).map(([name, [count]]) => [name, `${label(name)} (${count})`]);
  const sums = Object.entries(whole).filter(([, n]) => n).map(([name, n]) => [name, `${label(name)}, any reason (${n})`]);
  options($("outcome"), [["", `all (${records.length})`], ...entries.filter(([n]) => !n.includes(":")), ...sums, ...entries.filter(([n]) => n.includes(":"))]);
  if (entries.some(([name]) => name === "corrected")) $("outcome").value = "corrected"; // what the method is about
  $("step").onchange = $("outcome").onchange = filter;
  let timer;
  $("search").oninput = () => { clearTimeout(timer); timer = setTimeout(filter, 150); };
  $("filters").onsubmit = (event) => event.preventDefault();
  $("numbers").onchange = () => $("cards").classList.toggle("numbers", $("numbers").checked);
  document.querySelectorAll("[data-go]").forEach((b) => { b.onclick = () => { turn(Number(b.dataset.go)); $("filters").scrollIntoView(); }; });
}

function setUpKeys() {
  const keys = { j: () => move(1), k: () => move(-1), n: () => turn(1), p: () => turn(-1), "/": () => $("search").focus() };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement.blur();
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
}

function setUpTip() {
  const tip = $("tip");
  document.addEventListener("mouseover", (event) => {
    const token = event.target.closest ? event.target.closest("#cards .tok") : null;
    tip.hidden = !token;
    if (!token) return;
    tip.textContent = `${JSON.stringify(token.dataset.text)} · weight ${token.dataset.w} · token ${Number(token.dataset.i) + 1}`;
    const box = token.getBoundingClientRect();
    tip.style.left = Math.min(box.left, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = (box.top > 40 ? box.top - tip.offsetHeight - 6 : box.bottom + 6) + "px";
  });
}

document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
$("theme").onclick = () => document.documentElement.classList.toggle("dark");
setUpFilters();
setUpKeys();
setUpTip();
filter();
