// Parts of a view that follow the state, and keep the reader's place while they do.

import { el } from "./dom.js";

/** A section that `make(page)` makes anew whenever it would differ. Returns its update. */
export function live(parent, title, make, { tip } = {}) {
  const body = el("div");
  parent.append(el("section", {}, title ? el("h2", { text: title, title: tip }) : null, body));
  let last = "";
  return (page) => {
    const made = make(page);
    const now = made.outerHTML ?? "";
    if (now === last) return;
    last = now;
    keepingPlace(body, () => body.replaceChildren(made));
  };
}

export const together = (...updates) => (page) => updates.forEach((update) => update(page));

/** Change what is in `node`; focus and sideways scrolling stay where they were. */
export function keepingPlace(node, change) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  const sought = focused && nameOf(focused);
  const scrolled = node.querySelector(".scroll")?.scrollLeft ?? 0;
  change();
  const scroller = node.querySelector(".scroll");
  if (scroller) scroller.scrollLeft = scrolled;
  if (!focused || focused.isConnected) return;
  const again = [...node.querySelectorAll(focused.tagName)].find((n) => nameOf(n) === sought);
  again?.focus({ preventScroll: true });
}

const nameOf = (node) =>
  node.getAttribute("href") ?? node.getAttribute("aria-label") ?? node.textContent;
