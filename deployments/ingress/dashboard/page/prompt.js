// The prompt box: which adapter would answer, why, and what it says.

import { Refused, ask, askJson } from "./api.js";
import { adapterLink, decoded, el, foreign, percent, table } from "./dom.js";

export function promptBox(parent) {
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
  const headers = ["adapter", "replica", "residency"].map((name) => `${name} ${decoded(answer.headers.get(`x-roundhouse-${name}`))}`);
  out.append(el("p", { class: "soft", text: headers.join(" · ") }));
}
