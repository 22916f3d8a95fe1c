// The views of the whole cluster: overview, placement, traffic, routing, events.

import { state } from "./api.js";
import { HITS_TIP, charts } from "./curves.js";
import { adapterLink, count, el, percent, rate, table, tiles, time } from "./dom.js";
import { live, together } from "./live.js";
import { PlacementMap } from "./map.js";
import { promptBox } from "./prompt.js";
import { batchTable, decisionTable, eventTable, replicaTable } from "./tables.js";

function sum(points, of) {
  return points.reduce((total, point) => total + (of(point) ?? 0), 0);
}

function lastMinute(page) {
  return [...state.points.values()].filter((p) => p.at >= page.at - 65 && p.at < page.at - 5);
}

export function overview(parent) {
  return together(
    live(parent, "", (page) => {
      const points = lastMinute(page);
      const hits = sum(points, (p) => p.tiers.slot + p.tiers.host);
      const lookups = hits + sum(points, (p) => p.tiers.node + p.tiers.remote);
      const replicas = page.cluster.members.filter((m) => m.kind === "replica");
      const held = replicas.flatMap((m) => m.residency.slots.concat(m.residency.host));
      return tiles([
        ["requests", rate(sum(points, (p) => p.requests) / 60), "Answered requests a second, over the last minute"],
        ["errors", percent(sum(points, (p) => p.errors) / (sum(points, (p) => p.requests) || 1)), "Requests answered with a status of 400 or more, over the last minute"],
        ["hit ratio", lookups ? percent(hits / lookups) : "–", `${HITS_TIP}, over the last minute`],
        ["cold loads", count(sum(points, (p) => p.loads)), "Adapters taken into an engine's memory, over the last minute"],
        ["first token, P50", time(points.sort((a, b) => a.at - b.at).findLast((p) => p.ttft_p50_s !== null)?.ttft_p50_s), "Time to first token of streamed requests, in the newest 5 s of the last minute that had one"],
        ["waiting", count(sum(page.cluster.members, (m) => sum(Object.values(m.waiting), (n) => n))), "Requests for adapters that wait for their turn on a replica"],
        ["adapters", count(page.cluster.adapters), "Registered adapters that this key may see"],
        ["in memory", count(new Set(held).size), "Adapter versions in a slot or in host memory of at least one replica"],
        ["replicas", count(replicas.length), "Replicas of base models that report"],
      ]);
    }),
    promptBox(parent),
    live(parent, "Replicas", (page) => replicaTable(page)),
    charts(parent, ["ratio", "hits", "requests", "ttft"]),
    live(parent, "Newest events", (page) => eventTable(page.events.slice(0, 8))),
  );
}

export function placementView(parent) {
  const map = new PlacementMap();
  parent.append(map.node);
  return (page) => map.update(page, state.adapters);
}

const TRAFFIC = [
  ["requests", "requests", count, "Answered requests"],
  ["errors", "errors", count, "Of them with a status of 400 or more; 499 is a client that left"],
  ["hit_ratio", "hit ratio", percent, HITS_TIP],
  ["ttft_p50_s", "TTFT P50", time, "Time to first token of streamed requests, median"],
  ["ttft_p99_s", "TTFT P99", time, "The same, 99th percentile"],
  ["tpot_p50_s", "TPOT P50", time, "Time per output token of streamed requests, median"],
  ["tokens", "tokens", count, "Generated tokens"],
  ["loads", "loads", count, "Loads into an engine's memory"],
];
const NAMES = new Map([["", "base model"], ["(unknown)", "refused before an adapter was chosen"], ["(other)", "adapters beyond those told apart"]]);

export function traffic(parent) {
  const filter = { text: "", sort: "requests", down: true };
  let shown = null;
  const again = () => shown && table_(shown);
  parent.append(el("div", { class: "tools" }, el("input", {
    type: "search", id: "search", placeholder: "Search adapters", "aria-label": "Search adapters",
    oninput: (event) => { filter.text = event.target.value; again(); },
  })));
  const sorter = (field, title) => el("button", {
    type: "button", text: filter.sort === field ? `${title} ${filter.down ? "▾" : "▴"}` : title, "aria-label": `Sort by ${title}`,
    onclick: () => { filter.down = filter.sort === field ? !filter.down : true; filter.sort = field; again(); },
  });
  const table_ = live(parent, "Adapters in the last hour", (page) => {
    shown = page;
    const order = filter.down ? 1 : -1;
    const rows = Object.entries(page.traffic).filter(([name]) => (NAMES.get(name) ?? name).toLowerCase().includes(filter.text.toLowerCase()))
      .sort(([, a], [, b]) => order * ((b[filter.sort] ?? 0) - (a[filter.sort] ?? 0))).slice(0, 300);
    return table([
      { title: "adapter", cell: ([name]) => NAMES.has(name) ? el("span", { class: "soft", text: NAMES.get(name) }) : adapterLink(name) },
      ...TRAFFIC.map(([field, title, show, tip]) => ({
        title, number: true, tip, head: sorter(field, title), cell: ([, t]) => show(t[field]),
        sorted: filter.sort === field ? (filter.down ? "descending" : "ascending") : null,
      })),
    ], rows, { empty: "No request in the last hour.", label: "Traffic by adapter" });
  });
  return together(
    table_,
    live(parent, "Batches", (page) => batchTable(page.batches), { tip: "Work that nobody waits for, in idle places; the newest first" }),
    charts(parent, ["requests", "ttft", "tpot", "tokens", "ratio", "hits", "loads", "load_s"]),
  );
}

export function routing(parent) {
  return together(
    promptBox(parent),
    charts(parent, ["decisions"]),
    live(parent, "Newest choices", (page) => decisionTable(page.decisions)),
    live(parent, "Adapters that prompts cannot tell apart", (page) => {
      const twins = page.cluster.members.flatMap((m) => m.router?.twins ?? []).slice(0, 100);
      return table([
        { title: "adapter", cell: (t) => adapterLink(t.a) }, { title: "and", cell: (t) => adapterLink(t.b) },
        { title: "confused", number: true, cell: (t) => percent(t.confused), tip: "Share of their own examples that went to the other one" },
      ], twins, { empty: "None among the registered ones.", label: "Confused adapters" });
    }, { tip: "By their cards: give them other examples, or merge them" }),
    live(parent, "The router's own quality", (page) => {
      const report = page.cluster.members.find((m) => m.router)?.router;
      if (!report) return el("p", { class: "empty", text: "No prompt router reports: `auto` goes to the base model." });
      return tiles([
        ["cards", count(report.cards), "Adapters that the router chooses among"],
        ["examples", count(report.examples), "Example prompts that it has learnt from"],
        ["right, left out", percent(report.left_out_top1), "Examples whose adapter it finds when it has not seen them"],
        ["calibration error", percent(report.left_out_ece), "Expected calibration error on left-out examples: how far confidence is from being right"],
        ["scope AUROC", report.scope_auroc?.toFixed(3) ?? "–", "How well it tells prompts that fit some adapter from everyday ones"],
        ["threshold", report.threshold?.toFixed(2) ?? "–", "Below this it abstains, and the base model answers"],
      ]);
    }),
  );
}

export function events(parent) {
  let kind = "", shown = null;
  const choose = el("select", { "aria-label": "kind", onchange: (event) => { kind = event.target.value; if (shown) list(shown); } },
    ["", "adapter", "rollout", "load", "failure", "replica"].map((value) => el("option", { value, text: value || "every kind" })));
  parent.append(el("div", { class: "tools" }, choose));
  const list = live(parent, "Events", (page) => {
    shown = page;
    return eventTable(page.events.filter((e) => !kind || e.kind === kind));
  });
  return list;
}
