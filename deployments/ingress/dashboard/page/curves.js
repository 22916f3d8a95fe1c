// The charts: what each draws, out of the points of the history.

import { askJson, state } from "./api.js";
import { draw } from "./charts.js";
import { el } from "./dom.js";

export const HITS_TIP = "Requests that found their adapter in a slot or in host memory, of all that named one";
const TIERS = [["slot", "slot", "solid"], ["host", "host", "solid"], ["node", "node", "solid"], ["remote", "remote", "dot"]];
const ms = (s) => s === null ? null : 1000 * s;

// `gap`: where nothing happened there is no value; of counts it is 0.
const CHARTS = {
  hits: { title: "Where requests found their adapter", unit: "requests/s", tip: HITS_TIP,
    curves: TIERS.map(([name, shade, dash]) => ({ name, colour: shade, dash, stacked: true, value: (p, w) => p.tiers[name] / w })) },
  ratio: { title: "Adapter hit ratio", unit: "%", share: true, tip: HITS_TIP,
    curves: [{ name: "hits", colour: "slot", gap: true, value: (p) => p.hit_ratio === null ? null : 100 * p.hit_ratio }] },
  requests: { title: "Requests", unit: "/s", tip: "Answered requests, and those of them with a status of 400 or more",
    curves: [{ name: "requests", colour: "slot", value: (p) => p.rate }, { name: "errors", colour: "wanted", dash: "dash", value: (p, w) => p.errors / w }] },
  ttft: { title: "Time to first token", unit: "ms", tip: "Streamed requests, from their arrival, queueing and loading included",
    curves: [{ name: "P50", colour: "slot", gap: true, value: (p) => ms(p.ttft_p50_s) }, { name: "P99", colour: "wanted", dash: "dash", gap: true, value: (p) => ms(p.ttft_p99_s) }] },
  tpot: { title: "Time per output token", unit: "ms", tip: "Streamed requests, mean of each answer after its first token",
    curves: [{ name: "P50", colour: "slot", gap: true, value: (p) => ms(p.tpot_p50_s) }, { name: "P99", colour: "wanted", dash: "dash", gap: true, value: (p) => ms(p.tpot_p99_s) }] },
  loads: { title: "Cold loads and evictions", unit: "/min", tip: "Adapters taken into an engine's memory, and moved out of it to make room",
    curves: [{ name: "loads", colour: "slot", value: (p, w) => 60 * p.loads / w }, { name: "evictions", colour: "node", dash: "dash", value: (p, w) => 60 * p.evictions / w }, { name: "failed", colour: "wanted", dash: "dot", value: (p, w) => 60 * p.failed_loads / w }] },
  load_s: { title: "Time of a load", unit: "ms", tip: "Mean, from when there is room until the engine has the adapter",
    curves: [{ name: "mean", colour: "slot", gap: true, value: (p) => ms(p.load_s) }] },
  tokens: { title: "Output tokens", unit: "/s", tip: "Generated tokens, over all adapters",
    curves: [{ name: "tokens", colour: "slot", value: (p, w) => p.tokens / w }] },
  decisions: { title: "Choices for auto", unit: "/s", tip: "adapter: one was chosen; base: it abstained or chose the base model; fallback: the router did not answer",
    curves: [["adapter", "slot", "solid"], ["base", "node", "dash"], ["fallback", "wanted", "dot"]].map(([name, colour, dash]) => ({ name, colour, dash, value: (p, w) => (p.decisions[name] ?? 0) / w })) },
};


/** Charts that follow the last hour, or the last day at a minute's resolution. */
export function charts(parent, names, { adapter } = {}) {
  let span = 5, fetching = null, fetched = { at: 0, span: 0, points: [] }, drawn = "";
  const grid = el("div", { class: "grid charts" });
  const nodes = names.map((name) => {
    const node = el("div", { class: "chart", role: "img", "aria-label": CHARTS[name].title });
    const title = `${CHARTS[name].title}, ${CHARTS[name].unit}`;
    grid.append(el("section", {}, el("h2", { text: title, title: CHARTS[name].tip }), node));
    return node;
  });
  if (!adapter) parent.append(chooser((chosen) => { span = chosen; drawn = ""; update(); }));
  parent.append(grid);

  async function fetchPoints() {
    const asked = span;
    const query = new URLSearchParams({ step: asked, ...(adapter ? { adapter } : {}) });
    const { data } = await askJson(`/v1/history?${query}`);
    if (asked === span) fetched = { at: Date.now(), span, points: data };
  }

  async function points() {
    if (span === 5 && !adapter) return [...state.points.values()].sort((a, b) => a.at - b.at);
    if (fetched.span !== span || Date.now() - fetched.at > 1000 * span) {
      fetching ??= fetchPoints().finally(() => { fetching = null; });
      await fetching.catch(() => {});
    }
    return fetched.span === span ? fetched.points : [];
  }

  async function update() {
    const found = filled(await points(), span, state.page?.at ?? 0);
    const stamp = JSON.stringify(found.slice(-20)) + document.documentElement.dataset.theme;
    if (stamp === drawn) return;
    drawn = stamp;
    const at = found.map((p) => p.at);
    names.forEach((name, i) => {
      const curves = CHARTS[name].curves.map((c) => ({
        ...c, values: found.map((p) => p.tiers ? c.value(p, span) : c.gap ? null : 0),
      }));
      draw(nodes[i], { at, curves, unit: CHARTS[name].unit, share: CHARTS[name].share })
        .catch((error) => nodes[i].replaceChildren(el("p", { class: "empty", text: `No chart: ${error.message}` })));
    });
  }
  return update;
}

function chooser(choose) {
  const select = el("select", { "aria-label": "time span", onchange: () => choose(Number(select.value)) },
    el("option", { value: "5", text: "the last hour, by 5 s" }),
    el("option", { value: "60", text: "the last day, by 1 min" }));
  return el("div", { class: "tools" }, el("label", {}, "Show ", select));
}

/** With the buckets in which nothing happened, up to the newest that is complete. */
function filled(points, width, now) {
  const found = new Map(points.map((point) => [point.at, point]));
  const all = [];
  const newest = Math.max(points.at(-1)?.at ?? 0, now - 2 * width);
  for (let at = points[0]?.at ?? Infinity; at <= newest; at += width) all.push(found.get(at) ?? { at });
  return all;
}
