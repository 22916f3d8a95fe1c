// The pages of one adapter and of one replica.

import { rollBack, startRollout } from "./actions.js";
import { askJson, state } from "./api.js";
import { HITS_TIP, charts } from "./curves.js";
import { adapterLink, bytes, count, el, foreign, percent, rate, replicaLink, table, tiles, time } from "./dom.js";
import { live, together } from "./live.js";
import { demand, placed } from "./map.js";
import { eventTable, replicaTable } from "./tables.js";

export function adapterView(parent, name) {
  let adapter = null, revision = null, problem = null, reading = false;
  parent.append(el("h2", {}, "Adapter ", foreign(name, { kind: "name" })));
  async function read(page) {
    const stamp = page.cluster.position;
    if (reading || stamp === revision) return;
    reading = true;
    try {
      adapter = await askJson(`/v1/adapters/${encodeURIComponent(name)}`);
      problem = null;
      revision = stamp;
    } catch (error) {
      adapter = null;
      problem = error.message;
      // What is not there is asked for again when something has changed; all else soon.
      if (error.status === 404) revision = stamp;
    }
    reading = false;
    parts.forEach((update) => update(page));
  }
  const parts = [
    live(parent, "", () => problem ? el("p", { class: "bad", text: problem }) : adapter ? card(adapter) : el("p", { class: "empty", text: "Loading…" })),
    live(parent, "Versions", (page) => adapter ? versions(adapter, page) : el("p", { class: "empty", text: "–" })),
    live(parent, "Rollout", () => adapter ? rollout(adapter) : el("p", { class: "empty", text: "–" })),
    live(parent, "Where it is", (page) => where(page, name)),
    live(parent, "In the last hour", (page) => {
      // An adapter may have the name of what every object has.
      const t = Object.hasOwn(page.traffic, name) ? page.traffic[name] : null;
      const asked = ["demand", rate(demand(page).get(name) ?? 0), "Requests a second of late, decayed"];
      if (!t) return tiles([asked]);
      return tiles([
        ["requests", count(t.requests), "Answered requests"], ["errors", count(t.errors), "With a status of 400 or more"],
        ["hit ratio", percent(t.hit_ratio), HITS_TIP], ["loads", count(t.loads), "Loads into an engine's memory"],
        ["evictions", count(t.evictions), "Times that it was moved out to make room"],
        ["TTFT P50", time(t.ttft_p50_s), "Time to first token, median"],
        ["TTFT P99", time(t.ttft_p99_s), "Time to first token, 99th percentile"],
        ["TPOT P50", time(t.tpot_p50_s), "Time per output token, median"], asked,
      ]);
    }),
    charts(parent, ["requests", "ttft", "hits", "loads"], { adapter: name }),
    live(parent, "Events", (page) => eventTable(page.events.filter((e) => e.subject === name))),
  ];
  return (page) => { read(page); parts.forEach((update) => update(page)); };
}

function card(a) {
  const facts = [["base model", a.base_model], ["owner", a.owner || "–"], ["visibility", a.visibility], ["license", a.license || "–"],
    ["replicas wanted", String(a.replicas)], ["pinned", a.pinned ? "yes" : "no"], ["examples", String(a.examples.length)], ["evaluation prompts", String(a.evaluation.length)]];
  return el("div", {}, el("div", { class: "clip" }, foreign(a.description, { most: 2000 })),
    el("p", {}, a.tags.map((tag) => el("span", { class: "tag" }, foreign(tag)))),
    tiles(facts.map(([title, value]) => [title, value.slice(0, 60), title])),
    el("details", {}, el("summary", { text: "Example prompts" }), el("ul", {}, a.examples.slice(0, 50).map((e) => el("li", {}, foreign(e))))));
}

function versions(a, page) {
  const aliases = (number) => Object.entries(a.aliases).filter(([, n]) => n === number).map(([alias]) => el("span", { class: "tag", text: alias }));
  const mayChange = page.may_change;
  return table([
    { title: "version", number: true, cell: (v) => String(v.number) },
    { title: "aliases", cell: (v) => el("span", {}, aliases(v.number)), tip: "stable answers to the plain name" },
    { title: "rank", number: true, cell: (v) => String(v.rank) }, { title: "size", number: true, cell: (v) => bytes(v.size_bytes) },
    { title: "registered", cell: (v) => new Date(1000 * v.created_at).toLocaleString() },
    { title: "digest", cell: (v) => el("code", { text: v.digest.slice(0, 12), title: v.digest }) },
    { title: "from", wrap: true, cell: (v) => v.lineage ? foreign(`${v.lineage.transformation} of ${v.lineage.parents.join(", ")}`) : "–", tip: "Lineage: what it was derived from" },
    { title: "notices", wrap: true, cell: (v) => v.notices.length ? el("ul", {}, v.notices.map((n) => el("li", {}, foreign(n)))) : "–", tip: "What is odd about its files, and was served all the same" },
    { title: "actions", cell: (v) => mayChange && v.number !== a.aliases.stable && !a.rollout ? el("button", { type: "button", text: "Roll out", onclick: () => startRollout(a, v.number) }) : "" },
  ], [...a.versions].reverse(), { empty: "No version.", label: "Versions" });
}

function rollout(a) {
  const now = a.rollout, last = a.last_rollout, mayChange = state.page?.may_change;
  const quality = (e) => e ? `right before ${percent(e.accuracy_before)}, after ${percent(e.accuracy_after)}; newly wrong ${percent(e.negative_flips)} of ${e.prompts} prompts` : "no evaluation yet";
  return el("div", {},
    now ? el("p", {}, `Version ${now.version} gets ${now.step < 0 ? "no request yet, it is being checked" : `${now.percents[now.step]} % of the requests`} (steps ${now.percents.join(", ")} %), next at ${new Date(1000 * now.next_at).toLocaleTimeString()}; ${now.gate ? `gate: ${quality(now.evaluation)}` : "no gate"}.`)
      : el("p", { class: "soft", text: "No rollout is under way." }),
    last ? el("p", { class: last.outcome === "rolled_back" ? "bad" : null }, `Last: version ${last.version} ${last.outcome.replace("_", " ")}. `, foreign(last.reason), ` (${quality(last.evaluation)})`) : null,
    mayChange && (now || a.previous.length) ? el("button", { type: "button", class: "danger", text: "Roll back", onclick: () => rollBack(a) }) : null,
    mayChange ? null : el("p", { class: "soft", text: "Changes need an admin key." }));
}

function where(page, name) {
  const rows = placed(page).filter((at) => at.key.split("@")[0] === name);
  return table([
    { title: "replica", cell: (at) => replicaLink(at.replica) },
    { title: "version", number: true, cell: (at) => at.key.split("@")[1] ?? "–" },
    { title: "state", cell: (at) => at.state },
  ], rows, { empty: "On no replica: the first request loads it.", label: "Where the adapter is" });
}

export function replicaView(parent, id) {
  parent.append(el("h2", {}, "Replica ", foreign(id, { kind: "name" })));
  const find = (page) => page.cluster.members.find((m) => m.id === id);
  return together(
    live(parent, "", (page) => find(page) ? replicaTable({ ...page, cluster: { ...page.cluster, members: [find(page)] } })
      : el("p", { class: "bad", text: page.cluster.store === "ok" ? "It does not report: it is gone." : "The store does not answer: whether it is there is not known." })),
    live(parent, "What it holds", (page) => {
      const member = find(page);
      const rows = member ? [...member.residency.slots.map((k) => [k, "slot"]), ...member.residency.host.map((k) => [k, "host"]), ...member.loading.map((k) => [k, "loading"])] : [];
      return table([
        { title: "adapter", cell: ([k]) => adapterLink(k.split("@")[0]) }, { title: "version", number: true, cell: ([k]) => k.split("@")[1] },
        { title: "tier", cell: ([, tier]) => tier }, { title: "in use", cell: ([k]) => member.running.includes(k) ? "yes" : "no", tip: "Whether requests use it now" },
      ], rows, { empty: "Nothing.", label: "Held adapters" });
    }),
    live(parent, "What it could not load", (page) => table([
      { title: "adapter", cell: ([k]) => foreign(k) }, { title: "why", wrap: true, cell: ([, why]) => foreign(why) },
    ], Object.entries(find(page)?.problems ?? {}), { empty: "Nothing.", label: "Problems" })),
    live(parent, "Events", (page) => eventTable(page.events.filter((e) => e.subject === id || e.text.includes(id)))),
  );
}
