// Elements from plain text: nothing that others have written is ever read as HTML.

/** An element. `props`: attributes; `on…` are listeners, `text` the content, `class` the classes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A name or text of somebody else's: cut to a length, and kept from turning its surroundings. */
export function foreign(text, { most = 400, kind = "text" } = {}) {
  const whole = String(text ?? "");
  const shown = whole.length > most ? `${whole.slice(0, most)}…` : whole;
  return el("span", { class: kind, dir: "auto", title: whole.slice(0, 1000), text: shown });
}

const link = (hash, text) => el("a", { href: hash }, foreign(text, { most: 80, kind: "name" }));
export const adapterLink = (name) => link(`#/adapter/${encodeURIComponent(name)}`, name);
export const replicaLink = (id) => link(`#/replica/${encodeURIComponent(id)}`, id);

/** What was percent-encoded; as it is, where it was not. */
export function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** A table: `columns` are {title, tip, number, cell(row)}. */
export function table(columns, rows, { empty, label }) {
  if (!rows.length) return el("p", { class: "empty", text: empty });
  const head = columns.map((c) =>
    el("th", { scope: "col", class: c.number ? "number" : null, title: c.tip, "aria-sort": c.sorted }, c.head ?? c.title));
  const body = rows.map((row) => el("tr", {}, columns.map((c) => {
    const found = c.cell(row);
    const content = found instanceof Node ? found : document.createTextNode(found ?? "–");
    return el("td", { class: c.number ? "number" : c.wrap ? "wrap" : null }, content);
  })));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

/** Numbers in tiles: [title, value, what it means]. */
export const tiles = (items) => el("dl", { class: "tiles" }, items.map(([title, value, tip]) =>
  el("div", { title: tip }, el("dt", { text: title }), el("dd", { text: value }))));

export const bar = (share, label) => el("span", { class: "bar", role: "img", "aria-label": label },
  Object.assign(el("span"), { style: `width:${Math.round(100 * Math.min(1, Math.max(0, share)))}%` }));

// -- numbers with their units -----------------------------------------------------------------

export const percent = (share) => share === null || share === undefined ? "–" : `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;
export const count = (n) => n === null || n === undefined ? "–" : n >= 10000 ? `${(n / 1000).toFixed(0)}k` : n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 });
export const rate = (n) => n === null || n === undefined ? "–" : `${n < 10 ? n.toFixed(2) : n.toFixed(0)}/s`;
export function time(s) {
  if (s === null || s === undefined) return "–";
  return s < 1 ? `${(1000 * s).toFixed(s < 0.01 ? 1 : 0)} ms` : `${s.toFixed(s < 10 ? 1 : 0)} s`;
}
export function bytes(n) {
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
  return `${n.toFixed(n < 10 && i ? 1 : 0)} ${units[i]}`;
}
export const clock = (at) => el("time", { datetime: new Date(1000 * at).toISOString(), title: new Date(1000 * at).toLocaleString(), text: new Date(1000 * at).toLocaleTimeString() });
