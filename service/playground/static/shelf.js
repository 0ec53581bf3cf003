// The list of clips.

import { byId, clock, count, make } from "./dom.js";

/** chosen(clip), removed(clip): what its user does. */
export class Shelf {
  #items = new Map();

  constructor(chosen, removed) {
    this.chosen = chosen;
    this.removed = removed;
  }

  add(clip) {
    const name = make("span", { className: "clip-name", textContent: clip.name });
    const picture = make("canvas", { width: 96, height: 48 });
    picture.setAttribute("aria-hidden", "true");
    const state = make("span", { className: "clip-state" });
    const open = make("button", { type: "button", className: "open", title: clip.name }, picture, name, state);
    open.addEventListener("click", () => this.chosen(clip));
    const close = make("button", { type: "button", className: "quiet close", textContent: "×" });
    close.setAttribute("aria-label", `Remove ${clip.name}`);
    close.addEventListener("click", () => this.removed(clip));
    const item = make("li", {}, open, close);
    this.#items.set(clip, { item, open, picture, state });
    byId("clips").append(item);
    this.update(clip);
  }

  update(clip) {
    const entry = this.#items.get(clip);
    if (!entry) return;
    entry.state.textContent = stateOf(clip);
    entry.item.className = clip.pending ? "pending" : clip.state;
    if (clip.thumbnail) drawThumbnail(entry.picture, clip);
  }

  remove(clip) {
    const entry = this.#items.get(clip);
    const next = entry.item.nextElementSibling ?? entry.item.previousElementSibling;
    entry.item.remove();
    this.#items.delete(clip);
    (next?.querySelector(".open") ?? byId("files")).focus();
  }

  select(clip) {
    for (const [other, { open }] of this.#items) {
      if (other === clip) open.setAttribute("aria-current", "true");
      else open.removeAttribute("aria-current");
    }
  }

  recolour() {
    for (const [clip, { picture }] of this.#items) if (clip.thumbnail) drawThumbnail(picture, clip);
  }
}

/** In a few words, after its length. */
function stateOf(clip) {
  const length = clip.duration === null ? "" : `${clock(clip.duration)} · `;
  return length + (STATES[clip.state] ?? told)(clip);
}

const STATES = {
  waiting: () => "waiting",
  sending: () => "analysing",
  busy: (clip) => `again in ${secondsLeft(clip)} s`,
  failed: () => "refused",
  cancelled: () => "cancelled",
};

export const secondsLeft = (clip) => Math.max(0, Math.ceil((clip.retryAt - Date.now()) / 1000));

/** What there is of an answer: "9 words, rain". */
export function told(clip) {
  const { transcription, classification } = clip.answer;
  const parts = [];
  if (transcription) parts.push(count(transcription.words.length, "word"));
  if (classification?.labels.length) parts.push(classification.labels[0].label);
  return parts.join(", ") || "vector";
}

function drawThumbnail(canvas, { thumbnail, peak }) {
  const context = canvas.getContext("2d");
  const { low, high } = thumbnail;
  const middle = canvas.height / 2;
  const scale = (middle - 2) / Math.max(peak, 0.02);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = getComputedStyle(canvas).color;
  for (let column = 0; column < low.length; column++) {
    const top = middle - high[column] * scale;
    context.fillRect(column * 2, top, 1.4, Math.max(1, middle - low[column] * scale - top));
  }
}
