// The frame: which view is shown, health, keys. State comes from api.js once a second.

import { askForKey } from "./actions.js";
import { follow, state } from "./api.js";
import { adapterView, replicaView } from "./details.js";
import { decoded, el } from "./dom.js";
import { events, overview, placementView, routing, traffic } from "./overview.js";

const main = document.querySelector("#main");
const VIEWS = new Map(Object.entries({
  "": overview, map: placementView, traffic, routing, events, adapter: adapterView, replica: replicaView,
}));
const OF_ONE = ["adapter", "replica"];
let shown = () => {};

function show() {
  // Slashes of a name are part of it, whether they are encoded or not.
  const [view, subject] = location.hash.match(/^#?\/?([^/]*)\/?(.*)$/).slice(1).map(decoded);
  const isKnown = VIEWS.has(view) && Boolean(subject) === OF_ONE.includes(view);
  main.replaceChildren();
  shown = VIEWS.get(isKnown ? view : "")(main, subject);
  for (const a of document.querySelectorAll("nav a")) {
    if (a.hash === `#/${isKnown ? view : ""}`) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  document.title = `Roundhouse${isKnown && view ? ` · ${subject || view}` : ""}`;
  refresh();
}

function refresh() {
  const began = performance.now();
  tellHealth();
  try {
    if (state.page) shown(state.page);
    else if (state.failed) main.replaceChildren(el("p", { class: "empty", text: `Nothing to show yet: ${state.failed.message}. The page asks again every second.` }));
  } catch (error) {
    // A view that fails must not keep the page from following what happens.
    tellStale(`This view failed: ${error.message}`);
    console.error(error);
  }
  // For benchmarks/page.py, and for whoever looks with the browser's own tools.
  performance.clearMeasures("update");
  performance.measure("update", { start: began });
}

function tellHealth() {
  const health = document.querySelector("#health");
  const said = health.querySelector(".said");
  const clock = (at) => new Date(at).toLocaleTimeString();
  if (state.failed) {
    health.className = "unknown";
    said.textContent = state.failed.status === 401 ? "a key is needed" : "not known: the cluster does not answer";
    tellStale(state.page ? `Stale since ${clock(state.at)}, ${Math.round((Date.now() - state.at) / 1000)} s: ${state.failed.message}. What you see is from then.` : "");
    return;
  }
  if (!state.page) return;
  const { health: { state: is, reasons }, cluster, as_of: asOf, is_open: isOpen } = state.page;
  document.querySelector("#open").hidden = !isOpen;
  const isStale = cluster.store !== "ok";
  health.className = is;
  said.textContent = is === "ok" ? "ok" : `degraded${isStale ? ", stale" : ""}: ${reasons.join("; ")}`;
  const since = asOf ? `What you see of replicas, traffic and events is from ${clock(1000 * asOf)}.` : "Nothing was read from it yet.";
  tellStale(isStale ? `The store does not answer. ${since}` : "");
}

function tellStale(text) {
  const stale = document.querySelector("#stale");
  stale.hidden = !text;
  if (stale.textContent !== text) stale.textContent = text;
}

document.querySelector("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  refresh();
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog")) return;
  const links = document.querySelectorAll("nav a");
  if (event.key >= "1" && event.key <= String(links.length)) links[Number(event.key) - 1].click();
  if (event.key === "/") {
    event.preventDefault();
    if (!document.querySelector("#search")) location.hash = "#/map";
    setTimeout(() => document.querySelector("#search")?.focus());
  }
});
addEventListener("hashchange", () => { show(); main.focus(); });
document.querySelector("#health").addEventListener("click", () => { if (state.failed?.status === 401) askForKey(false); });
follow(refresh, askForKey);
show();
