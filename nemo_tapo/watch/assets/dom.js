// Make elements. Text reaches the page through text nodes alone, so nothing that a model wrote is ever read as HTML.

export const byId = (id) => document.getElementById(id);

/** Return an element with a class and children; null and undefined among the children are left out. */
export function el(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Return an SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Return a button with a text, a title and what it does. */
export function button(text, title, action, className = "") {
  const node = el("button", className, text);
  node.type = "button";
  node.title = title;
  node.onclick = action;
  return node;
}

/** Return a <select> of [value, text] entries. */
export function select(entries, value, change) {
  const node = el("select", "", entries.map(([key, text]) => {
    const option = el("option", "", text);
    option.value = key;
    return option;
  }));
  node.value = value;
  node.onchange = () => change(node.value);
  return node;
}

/** Return a number in at most four significant digits, "-" for none. */
export function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

/** Return seconds as "3.2 s", "4 min 30 s" or "2 h 5 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "-";
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

const tip = byId("tip");

/** Show a sentence beside the pointer; "" hides it. */
export function showTip(text, x = 0, y = 0) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y > 60 ? y - tip.offsetHeight - 10 : y + 18}px`;
}
