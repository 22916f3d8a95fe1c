// The placement map: adapters by replicas. Only the rows in view are in the document.

import { adapterLink, count, el, replicaLink } from "./dom.js";
import { keepingPlace } from "./live.js";

const ROW = 24, SPARE = 10;
const LEGEND = [
  ["slot", "S", "in a slot of the engine: a request starts at once"],
  ["host", "H", "in the replica's host memory: a move of milliseconds away"],
  ["loading", "L", "on its way in"],
  ["wanted", "W", "wanted here by the plan, and not there yet"],
  ["older", "V", "another version than those that answer to the plain name; asked for by number or alias"],
  ["leaving", "O", "on its way out: it goes when its last request ends"],
  ["failed", "!", "could not be loaded; its page says why"],
];
const LETTER = Object.fromEntries(LEGEND.map(([name, letter]) => [name, letter]));

/** Every version on every replica: {key, replica, state}; what the plan wants and is not there, too. */
export function placed(page) {
  const found = [], there = new Set();
  for (const member of page.cluster.members) {
    if (member.kind !== "replica") continue;
    const states = [["failed", Object.keys(member.problems)], ["loading", member.loading],
      ["host", member.residency.host], ["slot", member.residency.slots]];
    for (const [state, keys] of states) {
      for (const key of keys) {
        const isLeaving = member.leaving.includes(key) && state !== "failed";
        found.push({ key, replica: member.id, state: isLeaving ? "leaving" : state });
        there.add(`${key.split("@")[0]} ${member.id}`);
      }
    }
  }
  for (const model of Object.values(page.cluster.plan?.models ?? {})) {
    for (const [name, replicas] of Object.entries(model.holders)) {
      for (const replica of replicas) {
        if (!there.has(`${name} ${replica}`)) found.push({ key: name, replica, state: "wanted" });
      }
    }
  }
  return found;
}

/** The map's cells: adapter -> replica -> {state, key}; of several versions, the one that answers. */
function placement(page, adapters) {
  const cells = new Map();
  for (const { key, replica, state } of placed(page)) {
    const [name, version] = key.split("@");
    const row = adapters.get(name);
    const number = Number(version);
    const answers = state === "wanted" || (row && (row.stable === number || row.rollout?.version === number));
    const isKnown = row?.versions.includes(number);
    const shown = answers || state === "failed" || state === "leaving" ? state : isKnown ? "older" : "leaving";
    if (!cells.has(name)) cells.set(name, new Map());
    if (answers || !cells.get(name).has(replica)) cells.get(name).set(replica, { state: shown, key });
  }
  return cells;
}

/** Requests a second by adapter, as all ingresses see them together. */
export function demand(page) {
  const total = new Map();
  for (const member of page.cluster.members) {
    for (const [name, rate] of Object.entries(member.demand)) total.set(name, (total.get(name) ?? 0) + rate);
  }
  return total;
}

export class PlacementMap {
  constructor() {
    this.filter = { text: "", tag: "", owner: "", base: "", sort: "demand", cold: false };
    this.head = el("thead");
    this.body = el("tbody");
    this.scroller = el("div", { id: "map", tabindex: "0", role: "region", "aria-label": "Placement map", onscroll: () => this.paint() },
      el("table", {}, this.head, this.body));
    this.said = el("p", { class: "soft", role: "status" });
    this.tools = this.makeTools();
    this.node = el("section", {}, el("h2", { text: "Placement" }), this.tools, this.legend(), this.said, this.scroller);
    this.rows = [];
  }

  legend() {
    return el("p", { class: "legend soft" }, LEGEND.map(([name, letter, means]) =>
      el("span", { title: means }, el("span", { class: `cell ${name}`, text: letter }), name)));
  }

  makeTools() {
    const set = (field) => (event) => {
      this.filter[field] = event.target.type === "checkbox" ? event.target.checked : event.target.value;
      this.scroller.scrollTop = 0;
      this.update(this.page, this.adapters);
    };
    this.choices = Object.fromEntries(["tag", "owner", "base"].map((field) =>
      [field, el("select", { onchange: set(field), "aria-label": field }, el("option", { value: "", text: `any ${field}` }))]));
    return el("div", { class: "tools" },
      el("input", { type: "search", id: "search", placeholder: "Search adapters", "aria-label": "Search adapters", oninput: set("text") }),
      this.choices.tag, this.choices.owner, this.choices.base,
      el("label", {}, "Sort by ", el("select", { onchange: set("sort") },
        ["demand", "name", "copies"].map((value) => el("option", { value, text: value })))),
      el("label", { title: "Adapters that are nowhere, wanted nowhere and asked for by nobody" },
        el("input", { type: "checkbox", onchange: set("cold") }), " show cold"));
  }

  offer(field, values) {
    const select = this.choices[field];
    const there = new Set([...select.options].map((option) => option.value));
    for (const value of values) if (value && !there.has(value)) select.append(el("option", { value, text: value }));
    select.hidden = select.options.length < 2;
  }

  update(page, adapters) {
    if (!page) return;
    this.page = page;
    this.adapters = adapters;
    this.cells = placement(page, adapters);
    this.demand = demand(page);
    this.replicas = page.cluster.members.filter((m) => m.kind === "replica")
      .sort((a, b) => `${a.model} ${a.node} ${a.id}`.localeCompare(`${b.model} ${b.node} ${b.id}`));
    const all = [...adapters.values()];
    this.offer("tag", new Set(all.flatMap((row) => row.tags)));
    this.offer("owner", new Set(all.map((row) => row.owner)));
    this.offer("base", new Set(all.map((row) => row.base_model)));
    const { text, tag, owner, base, sort, cold } = this.filter;
    // What is somewhere but no longer registered is on its way out, and shown.
    const gone = [...this.cells.keys()].filter((name) => !adapters.has(name)).map((name) => ({ name, tags: [], owner: "", base_model: "", description: "", gone: true }));
    const matching = [...all, ...gone].filter((row) =>
      (!text || row.name.toLowerCase().includes(text.toLowerCase()) || row.description.toLowerCase().includes(text.toLowerCase()))
      && (!tag || row.tags.includes(tag)) && (!owner || row.owner === owner) && (!base || row.base_model === base));
    const isCold = (row) => !this.cells.has(row.name) && !(this.demand.get(row.name) > 0.001);
    const hidden = cold || text ? 0 : matching.filter(isCold).length;
    this.rows = hidden ? matching.filter((row) => !isCold(row)) : matching;
    const copies = (row) => this.cells.get(row.name)?.size ?? 0;
    const order = { demand: (a, b) => (this.demand.get(b.name) ?? 0) - (this.demand.get(a.name) ?? 0), copies: (a, b) => copies(b) - copies(a), name: () => 0 }[sort];
    this.rows.sort((a, b) => order(a, b) || (a.name < b.name ? -1 : 1));
    this.said.textContent = `${this.rows.length} of ${adapters.size} adapters on ${this.replicas.length} replicas`
      + (hidden ? `; ${hidden} cold ones are not shown` : "");
    keepingPlace(this.head, () => this.head.replaceChildren(el("tr", {},
      el("th", { scope: "col", text: "adapter" }), el("th", { scope: "col", class: "number", text: "req/s", title: "Requests a second of late, decayed (placement.half_life_s)" }),
      this.replicas.map((r) => el("th", { scope: "col", class: "replica", title: `${r.model} on ${r.node}` }, replicaLink(r.id))))));
    this.paint();
  }

  paint() {
    const from = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - SPARE);
    const to = Math.min(this.rows.length, from + Math.ceil((this.scroller.clientHeight || 600) / ROW) + 2 * SPARE);
    const gap = (n) => n > 0 ? [el("tr", { "aria-hidden": "true", style: `height:${n * ROW}px` }, el("td", { colspan: this.replicas.length + 2 }))] : [];
    keepingPlace(this.body, () => this.body.replaceChildren(
      ...gap(from), ...this.rows.slice(from, to).map((row) => this.row(row)), ...gap(this.rows.length - to)));
    if (!this.rows.length) this.body.replaceChildren(el("tr", {}, el("td", { text: this.adapters?.size ? "Nothing matches." : "No adapter is registered yet: roundhouse adapters add FOLDER" })));
  }

  row(row) {
    const cells = this.cells.get(row.name);
    return el("tr", {},
      el("th", { scope: "row" }, row.gone ? el("span", { class: "name soft", dir: "auto", text: `${row.name} (removed)` }) : adapterLink(row.name)),
      el("td", { class: "number", text: (this.demand.get(row.name) ?? 0).toFixed(2) }),
      this.replicas.map((replica) => {
        const cell = cells?.get(replica.id);
        return el("td", {}, cell ? el("span", { class: `cell ${cell.state}`, role: "img", "aria-label": `${cell.key}: ${cell.state} on ${replica.id}`, title: `${cell.key}: ${cell.state} on ${replica.id}`, text: LETTER[cell.state] }) : "");
      }));
  }
}

export const shareOfSlots = (member) => {
  const { slots, slot_capacity: room } = member.residency;
  return `${count(slots.length)}/${count(room)}`;
};
