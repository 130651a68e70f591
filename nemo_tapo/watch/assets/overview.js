// One run's settings, evaluation, and where it lies.

import { ask, focusRun } from "./data.js";
import { duration, el } from "./dom.js";

function table({ title, head, rows }) {
  return el("section", "group", el("h2", "", `Evaluation: ${title}`), el("div", "scroll", el("table", "", el("thead", "", el("tr", "", ["", ...head].map((text) => el("th", "", text)))),
    el("tbody", "", rows.map((row) => el("tr", "", row.map((text, i) => el(i ? "td" : "th", "", text))))))));
}

/** Draw the run that has the focus. */
export async function render(host) {
  const run = focusRun();
  if (!run) {
    host.replaceChildren(el("p", "empty", "No runs were found here."));
    return;
  }
  const told = await ask("run", { run: run.name });
  const facts = [["state", told.state], ["step", told.planned ? `${told.step} of ${told.planned}` : String(told.step)], ["last written", told.seconds_ago === null ? "-" : `${duration(told.seconds_ago)} ago`],
    ["steps with rollouts", String(told.sample_steps)], ...told.settings];
  host.replaceChildren(
    el("section", "group", el("h2", "", run.name, el("small", "", told.folder)), el("dl", "facts", facts.map(([name, value]) => el("div", "", el("dt", "", name), el("dd", "", value))))),
    ...told.notes.map((note) => el("p", "note", note)), ...told.tables.map(table),
    ...(told.tables.length ? [] : [el("p", "empty", "evaluation.json is not there (yet).")]));
}

export const update = () => false;
