// What changes something: always asked about first, in so many words.

import { askJson, useKey } from "./api.js";
import { el } from "./dom.js";

/** Ask in so many words what is about to happen; null when it shall not. */
function confirm(title, sentences, fields = [], ok = "Do it", cancel = "Cancel") {
  const dialog = document.querySelector("#dialog");
  document.querySelector("#dialog-title").textContent = title;
  document.querySelector("#dialog-body").replaceChildren(...sentences.map((text) => el("p", { dir: "auto", text })), ...fields.map(([label, input]) => el("label", {}, label, input)));
  document.querySelector("#dialog-ok").textContent = ok;
  document.querySelector("#dialog-cancel").textContent = cancel;
  document.querySelector("#dialog-cancel").hidden = !cancel;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true }));
}

export async function startRollout(a, version, before = "10, 50, 100", beforeStep = "60") {
  const percents = el("input", { value: before, inputmode: "numeric" });
  const step = el("input", { value: beforeStep, inputmode: "numeric" });
  if (!await confirm(`Roll out ${a.name}@${version}?`, [
    `Requests for ${a.name} go to version ${version} in growing shares; the others stay with version ${a.aliases.stable}.`,
    a.evaluation.length ? "Before each step its evaluation prompts are asked of both; when it does worse, it is rolled back by itself." : "It has no evaluation prompts: nothing but you will notice when it does worse.",
  ], [["Shares in % (100 ends it) ", percents], ["Seconds between steps ", step]], "Roll out")) return;
  const shares = percents.value.split(",").map((part) => Number(part.trim()));
  const grow = shares.every((share, i) => Number.isInteger(share) && share > (shares[i - 1] ?? 0) && share <= 100);
  if (!grow || !(Number(step.value) > 0)) {
    await told("That is no rollout", "Shares are whole numbers from 1 to 100 that grow, such as 10, 50, 100; the seconds are a number above 0.");
    return startRollout(a, version, percents.value, step.value);
  }
  await act(`/v1/adapters/${encodeURIComponent(a.name)}/rollout`, { version, percent: shares, step_s: Number(step.value), gate: a.evaluation.length > 0 });
}

export async function rollBack(a) {
  const to = a.rollout ? a.aliases.stable : a.previous.at(-1);
  if (!await confirm(`Roll back ${a.name}?`, [`All requests for ${a.name} go to version ${to} again, from the next one on.`], [], "Roll back")) return;
  await act(`/v1/adapters/${encodeURIComponent(a.name)}/rollback`, {});
}

async function act(path, body) {
  try {
    await askJson(path, { method: "POST", body });
  } catch (error) {
    await told("It did not work", error.message);
  }
}

const told = (title, text) => confirm(title, [text], [], "Close", "");

/** Asks for a key; whether there is one to try. */
export async function askForKey(wasWrong) {
  if (document.querySelector("#dialog").open) return false;
  const input = el("input", { type: "password", autocomplete: "off", name: "key" });
  const isSent = await confirm("This cluster asks for a key", [
    ...(wasWrong ? ["The key that you gave is not known here."] : []),
    "A client key shows what it may see; an admin key may change things, too. It stays in this tab.",
  ], [["Key ", input]], "Use it");
  if (isSent) useKey(input.value.trim());
  return isSent;
}
