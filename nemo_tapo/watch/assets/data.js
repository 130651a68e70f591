// What the server says of the runs, kept up to date by asking for what was added.

import { state } from "./state.js";

export const runs = []; // as /api/runs lists them, each with {series, sampleSteps, times}
export const words = { outcomes: {}, metrics: {} };
const series = new Map(); // run name -> {version, steps, columns}
const samples = new Map(); // run name -> {version, steps, times}
export const health = { error: "", notes: [] };
const EMPTY = { version: -1, steps: [], columns: {} };

/** Return the answer to a request. Throws an Error with the server's sentence. */
export async function ask(path, parameters = {}, signal = undefined) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const response = await fetch(`/api/${path}?${new URLSearchParams(given)}`, { signal });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export const getRun = (name) => runs.find((run) => run.name === name);
export const getSeries = (name) => series.get(name) || EMPTY;
export const getSamples = (name) => samples.get(name) || { version: -1, steps: [], times: {} };
export const isHidden = (name) => state.hide.split("\n").includes(name);
export const visibleRuns = () => runs.filter((run) => !isHidden(run.name));

/** Return the run that the views of a single run show: the chosen one, else the first at work, else the first. */
export function focusRun() {
  const shown = visibleRuns();
  return getRun(state.run) || shown.find((run) => run.state === "running" && run.rows) || shown.find((run) => run.rows) || shown[0];
}

async function refreshSeries(run) {
  let known = getSeries(run.name);
  for (let more = true; more;) {
    const answer = await ask("series", { run: run.name, begin: known.steps.length, version: known.version });
    if (answer.begin === 0) known = { version: answer.version, steps: [], columns: {} };
    const count = answer.begin;
    for (const key of Object.keys(answer.columns)) known.columns[key] ??= new Array(count).fill(null);
    for (const [key, column] of Object.entries(known.columns)) {
      const added = answer.columns[key] || new Array(answer.steps.length).fill(null);
      for (const value of added) column.push(value);
    }
    for (const step of answer.steps) known.steps.push(step);
    known.version = answer.version;
    more = answer.more;
    series.set(run.name, known);
  }
}

/** Ask what changed; return true if something that a view shows did. */
export async function refresh() {
  try {
    const answer = await ask("runs");
    let changed = answer.runs.length !== runs.length || health.error !== "";
    health.error = "";
    for (const run of answer.runs) {
      const old = getRun(run.name);
      const stale = getSeries(run.name).version !== run.versions[0] || getSeries(run.name).steps.length !== run.rows;
      if (stale && run.rows) await refreshSeries(run);
      const known = getSamples(run.name);
      if (known.version !== run.versions[1] || known.steps.length !== run.sample_steps) samples.set(run.name, await ask("steps", { run: run.name }));
      changed ||= stale || !old || old.state !== run.state || old.sample_steps !== run.sample_steps || String(old.notes) !== String(run.notes);
    }
    runs.splice(0, runs.length, ...answer.runs);
    health.notes = answer.notes;
    return changed;
  } catch (error) {
    const first = health.error === "";
    health.error = error instanceof TypeError ? "The server does not answer: is `nemo-tapo watch` still running?" : error.message;
    return first;
  }
}

/** Load the meanings of outcomes and metrics, once. */
export async function loadWords() {
  Object.assign(words, await ask("words"));
}
