// What the page shows is in the address, after the '#', so that a link shows another person the same.

const DEFAULTS = {
  view: "curves", run: "", hide: "", smooth: "", keys: "", step: "", query: "", all: "", outcome: "", verdict: "", group: "", text: "",
};
export const state = { ...DEFAULTS };
const listeners = [];

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(DEFAULTS)) state[name] = given.get(name) ?? value;
}

/** Change some fields; `replace` adds no entry to the browser's history (a step that follows the run, typing). */
export function go(changes, replace = false) {
  const before = { ...state };
  Object.assign(state, changes);
  const kept = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const url = `${location.pathname}#${new URLSearchParams(kept)}`;
  if (replace) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  notify(before);
}

/** Call `listener(before)` after every change. */
export const onChange = (listener) => listeners.push(listener);
const notify = (before) => listeners.forEach((listener) => listener(before));

addEventListener("popstate", () => {
  const before = { ...state };
  read();
  notify(before);
});
read();
