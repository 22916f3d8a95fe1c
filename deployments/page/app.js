// The page: which view, what it shows, and the actions. State comes from api.js once a second.

import { Refused, ask, askJson, follow, state, useKey } from "./api.js";
import { draw } from "./charts.js";
import { adapterLink, bar, bytes, clock, count, el, foreign, percent, rate, replicaLink, table, tiles, time } from "./dom.js";
import { PlacementMap, demand, placement, shareOfSlots } from "./map.js";

const main = document.querySelector("#main");
const TIERS = [["slot", "slot", "solid"], ["host", "host", "solid"], ["node", "node", "solid"], ["remote", "remote", "dot"]];
const HITS_TIP = "Requests that found their adapter in a slot or in host memory, of all that named one";

// -- views ------------------------------------------------------------------------------------

const VIEWS = {
  "": overview, map: placementView, traffic, routing, events, adapter: adapterView, replica: replicaView,
};
let shown = null; // {hash, update}

function show() {
  const [view = "", subject] = location.hash.replace(/^#\/?/, "").split("/");
  const make = VIEWS[view] ?? overview;
  main.replaceChildren();
  shown = { update: make(main, subject && decodeURIComponent(subject)) };
  for (const a of document.querySelectorAll("nav a")) {
    if (a.hash === `#/${view}`) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  document.title = `Roundhouse${view ? ` · ${subject ?? view}` : ""}`;
  refresh();
}

function refresh() {
  const began = performance.now();
  update();
  // For benchmarks/page.py, and for whoever looks with the browser's own tools.
  performance.clearMeasures("update");
  performance.measure("update", { start: began });
}

function update() {
  tellHealth();
  if (state.page && !isBusy()) shown.update(state.page);
  else if (state.failed && !state.page) main.replaceChildren(el("p", { class: "empty", text: `The cluster does not answer: ${state.failed.message}. The page asks again every second.` }));
}

// Whoever selects text or has a field of a table in hand keeps it.
const isBusy = () => String(getSelection()).length > 0 && main.contains(getSelection().anchorNode);

function tellHealth() {
  const health = document.querySelector("#health");
  const stale = document.querySelector("#stale");
  const old = Math.round((Date.now() - state.at) / 1000);
  stale.hidden = !state.failed || !state.page;
  if (!stale.hidden) stale.textContent = `Stale for ${old} s: ${state.failed.message}. What you see is from ${new Date(state.at).toLocaleTimeString()}.`;
  if (!state.page) return;
  const { state: is, reasons } = state.page.health;
  const isStale = state.page.cluster.store !== "ok";
  health.className = is;
  health.querySelector(".said").textContent = is === "ok" ? "ok" : `degraded${isStale ? ", stale" : ""}: ${reasons.join("; ")}`;
}

/** A part of a view that is made anew from the page at each update. */
function live(parent, title, make, { tip } = {}) {
  const body = el("div");
  parent.append(el("section", {}, title ? el("h2", { text: title, title: tip }) : null, body));
  let last = "";
  return (page) => {
    const made = make(page);
    const now = made.outerHTML ?? "";
    // The same again would take the focus and the scroll position away.
    if (now === last) return;
    const scrolled = body.querySelector(".scroll")?.scrollLeft ?? 0;
    body.replaceChildren(made);
    last = now;
    const scroller = body.querySelector(".scroll");
    if (scroller) scroller.scrollLeft = scrolled;
  };
}

const together = (...updates) => (page) => updates.forEach((update) => update(page));

// -- curves -----------------------------------------------------------------------------------

const CHARTS = {
  hits: { title: "Where requests found their adapter", unit: "requests/s", tip: HITS_TIP,
    curves: TIERS.map(([name, shade, dash]) => ({ name, colour: shade, dash, stacked: true, value: (p, w) => p.tiers[name] / w })) },
  ratio: { title: "Adapter hit ratio", unit: "%", share: true, tip: HITS_TIP,
    curves: [{ name: "hits", colour: "slot", value: (p) => p.hit_ratio === null ? null : 100 * p.hit_ratio }] },
  requests: { title: "Requests", unit: "/s", tip: "Answered requests, and those of them with a status of 400 or more",
    curves: [{ name: "requests", colour: "slot", value: (p) => p.rate }, { name: "errors", colour: "wanted", dash: "dash", value: (p, w) => p.errors / w }] },
  ttft: { title: "Time to first token", unit: "ms", tip: "Streamed requests, from their arrival, queueing and loading included",
    curves: [{ name: "P50", colour: "slot", value: (p) => ms(p.ttft_p50_s) }, { name: "P99", colour: "wanted", dash: "dash", value: (p) => ms(p.ttft_p99_s) }] },
  tpot: { title: "Time per output token", unit: "ms", tip: "Streamed requests, mean of each answer after its first token",
    curves: [{ name: "P50", colour: "slot", value: (p) => ms(p.tpot_p50_s) }, { name: "P99", colour: "wanted", dash: "dash", value: (p) => ms(p.tpot_p99_s) }] },
  loads: { title: "Cold loads and evictions", unit: "/min", tip: "Adapters taken into an engine's memory, and moved out of it to make room",
    curves: [{ name: "loads", colour: "slot", value: (p, w) => 60 * p.loads / w }, { name: "evictions", colour: "node", dash: "dash", value: (p, w) => 60 * p.evictions / w }, { name: "failed", colour: "wanted", dash: "dot", value: (p, w) => 60 * p.failed_loads / w }] },
  load_s: { title: "Time of a load", unit: "ms", tip: "Mean, from when there is room until the engine has the adapter",
    curves: [{ name: "mean", colour: "slot", value: (p) => ms(p.load_s) }] },
  decisions: { title: "Choices for auto", unit: "/s", tip: "adapter: one was chosen; base: it abstained or chose the base model; fallback: the router did not answer",
    curves: [["adapter", "slot", "solid"], ["base", "node", "dash"], ["fallback", "wanted", "dot"]].map(([name, colour, dash]) => ({ name, colour, dash, value: (p, w) => (p.decisions[name] ?? 0) / w })) },
};
const ms = (s) => s === null ? null : 1000 * s;

/** Charts that follow the last hour, or the last day at a minute's resolution. */
function charts(parent, names, { adapter } = {}) {
  let span = 5, fetched = { at: 0, points: [] }, drawn = "";
  const choose = el("div", { class: "tools" }, el("label", {}, "Show ", el("select", {
    "aria-label": "time span", onchange: (event) => { span = Number(event.target.value); fetched = { at: 0, points: [] }; drawn = ""; update(); },
  }, el("option", { value: "5", text: "the last hour, by 5 s" }), adapter ? null : el("option", { value: "60", text: "the last day, by 1 min" }))));
  const grid = el("div", { class: "grid" });
  const nodes = names.map((name) => {
    const node = el("div", { class: "chart", role: "img", "aria-label": CHARTS[name].title });
    grid.append(el("section", {}, el("h2", { text: CHARTS[name].title, title: CHARTS[name].tip }), node));
    return node;
  });
  parent.append(choose, grid);

  async function points() {
    if (span === 5 && !adapter) return [...state.points.values()].sort((a, b) => a.at - b.at);
    if (Date.now() - fetched.at > 1000 * span) {
      const query = new URLSearchParams({ step: span, ...(adapter ? { adapter } : {}) });
      fetched = { at: Date.now(), points: (await askJson(`/v1/history?${query}`)).data };
    }
    return fetched.points;
  }

  async function update() {
    const found = filled(await points().catch(() => []), span);
    const stamp = JSON.stringify(found.slice(-4)) + document.documentElement.dataset.theme;
    if (stamp === drawn) return;
    drawn = stamp;
    const at = found.map((p) => p.at);
    names.forEach((name, i) => {
      const { curves, unit, share } = CHARTS[name];
      draw(nodes[i], { at, unit, share, curves: curves.map((c) => ({ ...c, values: found.map((p) => p.tiers ? c.value(p, span) : null) })) })
        .catch((error) => nodes[i].replaceChildren(el("p", { class: "empty", text: `No chart: ${error.message}` })));
    });
  }
  return update;
}

/** Buckets in which nothing happened have no point; the curve must not jump over them. */
function filled(points, width) {
  const all = [];
  for (const point of points) {
    const last = all.at(-1);
    if (last && point.at - last.at > width) all.push({ at: last.at + width }, { at: point.at - width });
    all.push(point);
  }
  return all;
}

// -- overview ---------------------------------------------------------------------------------

function sum(points, of) {
  return points.reduce((total, point) => total + (of(point) ?? 0), 0);
}

function lastMinute(page) {
  return [...state.points.values()].filter((p) => p.at >= page.at - 65 && p.at < page.at - 5);
}

function overview(parent) {
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
        ["first token, P50", time(points.at(-1)?.ttft_p50_s), "Time to first token of streamed requests, in the newest 5 s"],
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

function replicaTable(page) {
  const replicas = page.cluster.members.filter((m) => m.kind === "replica")
    .sort((a, b) => `${a.node} ${a.model} ${a.id}`.localeCompare(`${b.node} ${b.model} ${b.id}`));
  return table([
    { title: "node", cell: (m) => foreign(m.node) },
    { title: "replica", cell: (m) => replicaLink(m.id) },
    { title: "base model", cell: (m) => foreign(m.model) },
    { title: "state", cell: (m) => Object.keys(m.problems).length ? el("span", { class: "bad", text: "cannot load some" }) : m.loading.length ? "loading" : "ok", tip: "As the replica reports it; one that does not report is not listed" },
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

// -- placement, traffic -------------------------------------------------------------------------

function placementView(parent) {
  const map = new PlacementMap();
  parent.append(map.node);
  return (page) => map.update(page, state.adapters);
}

function traffic(parent) {
  const filter = { text: "", sort: "requests" };
  const tools = el("div", { class: "tools" }, el("input", { type: "search", id: "search", placeholder: "Search adapters", "aria-label": "Search adapters", oninput: (event) => { filter.text = event.target.value; refresh(); } }));
  const update = charts(parent, ["requests", "ttft", "tpot", "ratio", "hits", "loads", "load_s"]);
  parent.append(tools);
  const by = (field) => el("button", { type: "button", text: field.replaceAll("_", " "), onclick: () => { filter.sort = field; refresh(); } });
  return together(update, live(parent, "Adapters in the last hour", (page) => {
    const rows = Object.entries(page.traffic).filter(([name]) => name.includes(filter.text))
      .sort(([, a], [, b]) => (b[filter.sort] ?? 0) - (a[filter.sort] ?? 0)).slice(0, 300);
    return table([
      { title: "adapter", cell: ([name]) => name ? adapterLink(name) : el("span", { class: "soft", text: "base model" }) },
      { title: "requests", head: by("requests"), number: true, cell: ([, t]) => count(t.requests), tip: "Answered requests" },
      { title: "errors", head: by("errors"), number: true, cell: ([, t]) => count(t.errors), tip: "Of them with a status of 400 or more" },
      { title: "hit ratio", head: by("hit_ratio"), number: true, cell: ([name, t]) => name ? percent(t.hit_ratio) : "–", tip: HITS_TIP },
      { title: "TTFT P50", head: by("ttft_p50_s"), number: true, cell: ([, t]) => time(t.ttft_p50_s), tip: "Time to first token of streamed requests, median" },
      { title: "TTFT P99", head: by("ttft_p99_s"), number: true, cell: ([, t]) => time(t.ttft_p99_s), tip: "The same, 99th percentile" },
      { title: "TPOT P50", head: by("tpot_p50_s"), number: true, cell: ([, t]) => time(t.tpot_p50_s), tip: "Time per output token of streamed requests, median" },
      { title: "tokens", head: by("tokens"), number: true, cell: ([, t]) => count(t.tokens), tip: "Generated tokens" },
    ], rows, { empty: "No request in the last hour.", label: "Traffic by adapter" });
  }));
}

// -- routing ------------------------------------------------------------------------------------

function routing(parent) {
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

function decisionTable(decisions) {
  return table([
    { title: "time", cell: (d) => clock(d.at) },
    { title: "went to", cell: (d) => d.adapter ? adapterLink(d.adapter) : el("span", { class: "soft", text: d.answered_by }) },
    { title: "confidence", number: true, cell: (d) => d.adapter ? percent(d.confidence) : "–", tip: "Calibrated probability that the adapter is the right one" },
    { title: "runners-up", cell: (d) => el("span", {}, d.runners_up.map((r) => el("span", { class: "tag" }, foreign(r.name, { kind: "name" }), ` ${percent(r.score)}`))), tip: "Other candidates with their predicted quality" },
    { title: "reason", wrap: true, cell: (d) => foreign(d.reason) },
    { title: "prompt", wrap: true, cell: (d) => d.input ? clipped(d.input) : el("span", { class: "soft", text: "not kept" }), tip: "Kept only with router.keep_prompts" },
  ], decisions, { empty: "No request to the model `auto` is remembered.", label: "Newest choices" });
}

const clipped = (text) => el("div", { class: "clip" }, foreign(text));

function promptBox(parent) {
  const text = el("textarea", { rows: "2", "aria-label": "Prompt", placeholder: "A prompt: see which adapter would answer it" });
  const streams = el("input", { type: "checkbox" });
  const out = el("div", { role: "status" });
  const go = el("button", { type: "submit", class: "primary", text: "Choose" });
  const form = el("form", { onsubmit: (event) => { event.preventDefault(); tryIt(text.value, streams.checked, out, go); } },
    text, el("div", { class: "tools" }, go, el("label", {}, streams, " and answer it")), out);
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(); });
  parent.append(el("section", {}, el("h2", { text: "Try a prompt" }), form));
  return () => {};
}

async function tryIt(prompt, answers, out, go) {
  if (!prompt.trim()) return;
  go.disabled = true;
  out.replaceChildren(el("p", { class: "soft", text: "choosing…" }));
  try {
    const { decisions: [decision] } = await askJson("/v1/route", { method: "POST", body: { input: prompt } });
    out.replaceChildren(explained(decision));
    if (answers) await streamed(prompt, out);
  } catch (error) {
    out.replaceChildren(el("p", { class: "bad", text: error.message }));
  } finally {
    go.disabled = false;
  }
}

function explained(decision) {
  const best = decision.adapter ? adapterLink(decision.adapter) : el("b", { text: "the base model" });
  return el("div", {}, el("p", {}, best, ` · ${percent(decision.confidence)} sure · `, foreign(decision.reason)),
    table([
      { title: "candidate", cell: (c) => c.adapter ? adapterLink(c.adapter) : foreign(c.model || "base model") },
      { title: "quality", number: true, cell: (c) => percent(c.score), tip: "Predicted, 0 to 100 %" },
      { title: "cost", number: true, cell: (c) => c.cost.toFixed(3), tip: "Weighed costs, in the unit of quality" },
      { title: "nearest", cell: (c) => c.residency ?? "–", tip: "Where the adapter is now, at best" },
    ], decision.candidates.slice(0, 6), { empty: "No candidates.", label: "Candidates" }),
    decision.evidence.length ? el("details", {}, el("summary", { text: "Examples that decided" }),
      el("ul", {}, decision.evidence.map((e) => el("li", {}, foreign(e.example), ` (${percent(e.share)})`)))) : null);
}

async function streamed(prompt, out) {
  const pre = el("pre", { dir: "auto" });
  out.append(pre);
  const body = { model: "auto", stream: true, max_tokens: 256, messages: [{ role: "user", content: prompt }] };
  const answer = await ask("/v1/chat/completions", { method: "POST", body });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Refused(event.error.message);
      pre.append(event.choices?.[0]?.delta?.content ?? "");
    }
  }
  const headers = ["adapter", "replica", "residency"].map((name) => `${name} ${answer.headers.get(`x-roundhouse-${name}`)}`);
  out.append(el("p", { class: "soft", text: headers.join(" · ") }));
}

// -- events -------------------------------------------------------------------------------------

function events(parent) {
  let kind = "";
  const choose = el("select", { "aria-label": "kind", onchange: (event) => { kind = event.target.value; refresh(); } },
    ["", "adapter", "rollout", "load", "failure", "replica"].map((value) => el("option", { value, text: value || "every kind" })));
  parent.append(el("div", { class: "tools" }, choose));
  return live(parent, "Events", (page) => eventTable(page.events.filter((e) => !kind || e.kind === kind)));
}

function eventTable(happenings) {
  return table([
    { title: "time", cell: (e) => clock(e.at) },
    { title: "kind", cell: (e) => el("span", { class: e.is_bad ? "bad" : null, text: e.is_bad ? `${e.kind} !` : e.kind }) },
    { title: "what", wrap: true, cell: (e) => el("div", { class: "clip" }, state.adapters.has(e.subject) ? el("a", { href: `#/adapter/${encodeURIComponent(e.subject)}` }, foreign(e.text)) : foreign(e.text)) },
  ], happenings, { empty: "Nothing has happened yet.", label: "Events" });
}

// -- one adapter, one replica ---------------------------------------------------------------------

function adapterView(parent, name) {
  let adapter = null, revision = null, problem = null;
  parent.append(el("h2", {}, "Adapter ", foreign(name, { kind: "name" })));
  async function read(page) {
    const stamp = page.cluster.position;
    if (stamp === revision) return;
    revision = stamp;
    try {
      adapter = await askJson(`/v1/adapters/${encodeURIComponent(name)}`);
      problem = null;
    } catch (error) {
      adapter = null;
      problem = error.message;
    }
    refresh();
  }
  const parts = [
    live(parent, "", () => problem ? el("p", { class: "bad", text: problem }) : adapter ? card(adapter) : el("p", { class: "empty", text: "Loading…" })),
    live(parent, "Versions", (page) => adapter ? versions(adapter, page) : el("p", { class: "empty", text: "–" })),
    live(parent, "Rollout", () => adapter ? rollout(adapter) : el("p", { class: "empty", text: "–" })),
    live(parent, "Where it is", (page) => where(page, name)),
    live(parent, "In the last hour", (page) => {
      const t = page.traffic[name];
      if (!t) return el("p", { class: "empty", text: "Nobody asked for it." });
      return tiles([
        ["requests", count(t.requests), "Answered requests"], ["errors", count(t.errors), "With a status of 400 or more"],
        ["hit ratio", percent(t.hit_ratio), HITS_TIP], ["TTFT P50", time(t.ttft_p50_s), "Time to first token, median"],
        ["TTFT P99", time(t.ttft_p99_s), "Time to first token, 99th percentile"], ["TPOT P50", time(t.tpot_p50_s), "Time per output token, median"],
        ["demand", rate(demand(page).get(name) ?? 0), "Requests a second of late, decayed"],
      ]);
    }),
    charts(parent, ["requests", "ttft", "hits"], { adapter: name }),
    live(parent, "Events", (page) => eventTable(page.events.filter((e) => e.subject === name))),
  ];
  return (page) => { read(page); parts.forEach((update) => update(page)); };
}

function card(a) {
  const facts = [["base model", a.base_model], ["owner", a.owner || "–"], ["visibility", a.visibility], ["license", a.license || "–"],
    ["replicas wanted", String(a.replicas)], ["pinned", a.pinned ? "yes" : "no"], ["examples", String(a.examples.length)], ["evaluation prompts", String(a.evaluation.length)]];
  return el("div", {}, el("p", {}, foreign(a.description, { most: 2000 })),
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
    { title: "actions", cell: (v) => mayChange && v.number !== a.aliases.stable && !a.rollout ? el("button", { type: "button", text: "Roll out", onclick: () => startRollout(a, v.number) }) : "" },
  ], [...a.versions].reverse(), { empty: "No version.", label: "Versions" });
}

function rollout(a) {
  const now = a.rollout, last = a.last_rollout, mayChange = state.page?.may_change;
  const quality = (e) => e ? `right before ${percent(e.accuracy_before)}, after ${percent(e.accuracy_after)}; newly wrong ${percent(e.negative_flips)} of ${e.prompts} prompts` : "no evaluation yet";
  return el("div", {},
    now ? el("p", {}, `Version ${now.version} gets ${now.step < 0 ? "no request yet, it is being checked" : `${now.percents[now.step]} % of the requests`} (steps ${now.percents.join(", ")} %); ${now.gate ? `gate: ${quality(now.evaluation)}` : "no gate"}.`)
      : el("p", { class: "soft", text: "No rollout is under way." }),
    last ? el("p", { class: last.outcome === "rolled_back" ? "bad" : null }, `Last: version ${last.version} ${last.outcome.replace("_", " ")}. `, foreign(last.reason), ` (${quality(last.evaluation)})`) : null,
    mayChange && (now || a.previous.length) ? el("button", { type: "button", class: "danger", text: "Roll back", onclick: () => rollBack(a) }) : null,
    mayChange ? null : el("p", { class: "soft", text: "Changes need an admin key." }));
}

function where(page, name) {
  const cells = [...(placement(page, state.adapters).get(name) ?? new Map())];
  return table([
    { title: "replica", cell: ([id]) => replicaLink(id) }, { title: "version", cell: ([, c]) => c.key.includes("@") ? c.key.split("@")[1] : "–" },
    { title: "state", cell: ([, c]) => c.state },
  ], cells, { empty: "On no replica: the first request loads it.", label: "Where the adapter is" });
}

function replicaView(parent, id) {
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

// -- actions ------------------------------------------------------------------------------------

/** Ask in so many words what is about to happen; null when it shall not. */
function confirm(title, sentences, fields = [], ok = "Do it") {
  const dialog = document.querySelector("#dialog");
  document.querySelector("#dialog-title").textContent = title;
  document.querySelector("#dialog-body").replaceChildren(...sentences.map((text) => el("p", { dir: "auto", text })), ...fields.map(([label, input]) => el("label", {}, label, input)));
  document.querySelector("#dialog-ok").textContent = ok;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true }));
}

async function startRollout(a, version) {
  const percents = el("input", { value: "10, 50, 100", inputmode: "numeric" });
  const step = el("input", { value: "60", inputmode: "numeric" });
  if (!await confirm(`Roll out ${a.name}@${version}?`, [
    `Requests for ${a.name} go to version ${version} in growing shares; the others stay with version ${a.aliases.stable}.`,
    a.evaluation.length ? "Before each step its evaluation prompts are asked of both; when it does worse, it is rolled back by itself." : "It has no evaluation prompts: nothing but you will notice when it does worse.",
  ], [["Shares in % (100 ends it) ", percents], ["Seconds between steps ", step]], "Roll out")) return;
  const shares = percents.value.split(",").map((part) => Number(part.trim()));
  await act(`/v1/adapters/${encodeURIComponent(a.name)}/rollout`, { version, percent: shares, step_s: Number(step.value), gate: a.evaluation.length > 0 });
}

async function rollBack(a) {
  const to = a.rollout ? a.aliases.stable : a.previous.at(-1);
  if (!await confirm(`Roll back ${a.name}?`, [`All requests for ${a.name} go to version ${to} again, from the next one on.`], [], "Roll back")) return;
  await act(`/v1/adapters/${encodeURIComponent(a.name)}/rollback`, {});
}

async function act(path, body) {
  try {
    await askJson(path, { method: "POST", body });
  } catch (error) {
    await confirm("It did not work", [error.message], [], "Close");
  }
}

async function askForKey() {
  const input = el("input", { type: "password", autocomplete: "off", name: "key" });
  if (await confirm("This cluster asks for a key", ["A client key shows what it may see; an admin key may change things, too. It stays in this tab."], [["Key ", input]], "Use it")) useKey(input.value.trim());
}

// -- the frame ------------------------------------------------------------------------------------

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
show();
follow(refresh, askForKey);
