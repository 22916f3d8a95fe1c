// Tables that several views show.

import { state } from "./api.js";
import { adapterLink, bar, clock, count, el, foreign, percent, replicaLink, table, time } from "./dom.js";
import { shareOfSlots } from "./map.js";

export function replicaTable(page) {
  const replicas = page.cluster.members.filter((m) => m.kind === "replica")
    .sort((a, b) => `${a.node} ${a.model} ${a.id}`.localeCompare(`${b.node} ${b.model} ${b.id}`));
  return table([
    { title: "node", cell: (m) => foreign(m.node) },
    { title: "replica", cell: (m) => replicaLink(m.id) },
    { title: "base model", cell: (m) => foreign(m.model) },
    { title: "state", cell: (m) => m.trouble ? el("span", { class: "bad", title: m.trouble, text: "not asked" }) : Object.keys(m.problems).length ? el("span", { class: "bad", text: "cannot load some" }) : m.loading.length ? "loading" : "ok", tip: "As the replica reports it; one that does not report is not listed" },
    { title: "requests", number: true, cell: (m) => `${count(m.ongoing)}/${count(m.max_ongoing)}`, tip: "Requests that the engine works on, of those it takes at a time" },
    { title: "load", cell: (m) => bar(m.ongoing / (m.max_ongoing || 1), `load ${percent(m.ongoing / (m.max_ongoing || 1))}`), tip: "The same as a bar" },
    { title: "slots", number: true, cell: shareOfSlots, tip: "Adapters in slots of the engine, of its slots" },
    { title: "host memory", number: true, cell: (m) => `${count(m.residency.slots.length + m.residency.host.length)}/${count(m.residency.host_capacity)}`, tip: "Adapters that the replica holds, slots included, of the entries it has" },
    { title: "KV cache", number: true, cell: (m) => percent(m.kv_use), tip: "Part of the engine's KV cache in use" },
    { title: "loads", number: true, cell: (m) => count(m.loads), tip: "Adapters taken into the engine since it started" },
    { title: "load time", number: true, cell: (m) => m.load_s ? time(m.load_s) : "–", tip: "Mean time of the last loads from the node's files" },
    { title: "leases", number: true, cell: (m) => count(m.leases), tip: "Requests that hold an adapter in place now" },
  ], replicas, { empty: page.cluster.store === "ok" ? "No replica reports. `roundhouse status` says what starts." : "The store does not answer: which replicas are there is not known.", label: "Replicas" });
}

export function eventTable(happenings) {
  return table([
    { title: "time", cell: (e) => clock(e.at) },
    { title: "kind", cell: (e) => el("span", { class: e.is_bad ? "bad" : null, text: e.is_bad ? `${e.kind} !` : e.kind }) },
    { title: "what", wrap: true, cell: (e) => el("div", { class: "clip" }, state.adapters.has(e.subject) ? el("a", { href: `#/adapter/${encodeURIComponent(e.subject)}` }, foreign(e.text)) : foreign(e.text)) },
  ], happenings, { empty: "Nothing has happened yet.", label: "Events" });
}

export function decisionTable(decisions) {
  return table([
    { title: "time", cell: (d) => clock(d.at) },
    { title: "went to", cell: (d) => d.adapter ? adapterLink(d.adapter) : el("span", { class: "soft", text: d.answered_by }) },
    { title: "confidence", number: true, cell: (d) => d.adapter ? percent(d.confidence) : "–", tip: "Calibrated probability that the adapter is the right one" },
    { title: "runners-up", cell: (d) => el("span", {}, d.runners_up.map((r) => el("span", { class: "tag" }, foreign(r.name, { kind: "name" }), ` ${percent(r.score)}`))), tip: "Other candidates with their predicted quality" },
    { title: "reason", wrap: true, cell: (d) => foreign(d.reason) },
    { title: "prompt", wrap: true, cell: (d) => d.input ? clipped(d.input) : el("span", { class: "soft", text: "not kept" }), tip: "Kept only with router.keep_prompts" },
  ], decisions, { empty: "No request to the model `auto` is remembered.", label: "Newest choices" });
}

export function batchTable(batches) {
  const done = (b) => b.counts.completed + b.counts.failed;
  return table([
    { title: "made", cell: (b) => clock(b.at) },
    { title: "batch", cell: (b) => foreign(b.id, { most: 80, kind: "name" }) },
    { title: "of", cell: (b) => b.owner ? foreign(b.owner) : el("span", { class: "soft", text: "nobody in particular" }), tip: "The tenant that has ordered it" },
    { title: "status", cell: (b) => el("span", { class: ["failed", "expired"].includes(b.status) ? "bad" : null, text: b.status }) },
    { title: "done", cell: (b) => bar(b.counts.total ? done(b) / b.counts.total : 0, `${count(done(b))} of ${count(b.counts.total)} done`) },
    { title: "answered", number: true, cell: (b) => count(b.counts.completed) },
    { title: "failed", number: true, cell: (b) => count(b.counts.failed), tip: "In the error file" },
    { title: "requests", number: true, cell: (b) => count(b.counts.total) },
  ], batches, { empty: "No batch is remembered. `roundhouse batch run FILE` makes one.", label: "Batches" });
}

const clipped = (text) => el("div", { class: "clip" }, foreign(text));
