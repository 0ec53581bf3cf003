// What the service answers about a clip: words, labels, neighbours, the vector.

import { byId, clock, copyButton, count, make, percent, signed } from "./dom.js";
import { nearest, vectorOf } from "./neighbours.js";
import { secondsLeft, told } from "./shelf.js";

const FEW_LABELS = 6;

export class Answers {
  #clip = null;
  #words = [];
  #spoken = -1;

  /** chosen(clip): a neighbour that its user wants to see. */
  constructor(player, chosen) {
    this.player = player;
    this.chosen = chosen;
    byId("copy-text").append(copyButton("Copy text", () => this.#clip.answer.transcription.text));
    byId("copy-vector").append(copyButton("Copy as JSON", () => JSON.stringify(vectorOf(this.#clip))));
    byId("all-labels").addEventListener("click", () => {
      this.#labels(Infinity);
      byId("labels").focus();
    });
  }

  show(clip, clips) {
    this.#clip = clip;
    byId("answer").hidden = clip.answer === null;
    byId("warnings").hidden = !clip.answer?.warnings;
    if (clip.answer === null) return;
    const { warnings = [] } = clip.answer;
    byId("warnings").textContent = warnings.map(({ message }) => message).join("\n");
    const { transcription, classification, embedding } = clip.answer;
    byId("said").hidden = !transcription;
    if (transcription) this.#transcript(transcription);
    byId("heard").hidden = !classification;
    if (classification) this.#heard(classification);
    byId("near").hidden = byId("vector").hidden = !embedding;
    if (embedding) this.neighbours(clips);
    if (embedding) this.stripes();
  }

  /** Lights the word that is being heard. */
  moveTo(seconds, playing) {
    const { words = [] } = this.#clip?.answer?.transcription ?? {};
    const at = playing ? words.findIndex(({ start, end }) => start <= seconds && seconds < end) : -1;
    if (at === this.#spoken) return;
    this.#words[this.#spoken]?.classList.remove("now");
    this.#spoken = at;
    const word = this.#words[at];
    if (!word) return;
    word.classList.add("now");
    const { offsetTop: top, offsetHeight: tall, parentElement: box } = word;
    if (top < box.scrollTop || top + tall > box.scrollTop + box.clientHeight) box.scrollTop = top;
  }

  #transcript({ words }) {
    this.#spoken = -1;
    this.#words = words.map((word) => this.#word(word));
    const spaced = this.#words.flatMap((button) => [button, " "]);
    byId("transcript").replaceChildren(...(words.length ? spaced : ["No words."]));
    byId("copy-text").hidden = words.length === 0;
    byId("word-detail").textContent = this.#hint();
  }

  #hint() {
    if (!this.#words.length) return "";
    return "The line under a word is its score" + (this.#clip.samples ? "; click one to hear it." : ".");
  }

  #word({ word, start, end, score }) {
    const detail = `${clock(start)} to ${clock(end)}, score ${score.toFixed(2)}`;
    const line = make("span", { className: "score" });
    line.style.width = `${score * 100}%`;
    const button = make("button", { type: "button", className: "word", title: detail }, word, line);
    button.addEventListener("click", () => this.player.play(start, end));
    const tell = () => (byId("word-detail").textContent = `${word}: ${detail}`);
    const hush = () => (byId("word-detail").textContent = this.#hint());
    button.addEventListener("pointerenter", tell);
    button.addEventListener("focus", tell);
    button.addEventListener("pointerleave", hush);
    button.addEventListener("blur", hush);
    return button;
  }

  #heard({ events }) {
    this.#labels(FEW_LABELS);
    byId("heard-note").textContent = events.length
      ? `${count(events.length, "event")} below the waveform`
      : "no events";
  }

  #labels(most) {
    const { labels } = this.#clip.answer.classification;
    const rows = labels.slice(0, most).map(({ label, score }) => bar(label, [0, score], percent(score)));
    byId("labels").replaceChildren(...rows);
    byId("all-labels").hidden = rows.length === labels.length;
    byId("all-labels").textContent = `All ${labels.length} labels`;
  }

  neighbours(clips) {
    if (!this.#clip?.space) return;
    const { rows, centred } = nearest(this.#clip, clips);
    byId("neighbours").replaceChildren(
      ...rows.map(({ clip, cosine }) => {
        const open = make("button", { type: "button", className: "link", title: told(clip) }, clip.name);
        open.addEventListener("click", () => this.chosen(clip));
        const ends = [0.5, 0.5 + cosine / 2].sort((a, b) => a - b);
        return bar(open, ends, signed(cosine, 3));
      }),
    );
    byId("near-note").textContent = noteOn(rows.length, centred);
  }

  /** The vector as a barcode: from white over the ink to the accent, by value. */
  stripes() {
    if (!this.#clip?.answer?.embedding) return;
    const canvas = byId("stripes");
    const vector = vectorOf(this.#clip);
    canvas.width = vector.length;
    canvas.height = 1;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const sorted = vector.map(Math.abs).sort((a, b) => a - b);
    const most = sorted[Math.floor(sorted.length * 0.98)] || 1;
    vector.forEach((value, i) => {
      context.fillStyle = value < 0 ? style.color : style.outlineColor;
      context.globalAlpha = Math.min(1, Math.abs(value) / most);
      context.fillRect(i, 0, 1, 1);
    });
    const norm = Math.hypot(...vector).toPrecision(4);
    byId("vector-note").textContent = `${vector.length} numbers, the mean of the clip's frames; norm ${norm}.`;
  }
}

/** How far a clip is, and what went wrong with it. */
export function showState(clip, outdated) {
  const progress = {
    waiting: "Waiting to be sent.",
    sending: "The service is analysing it.",
    busy: `The service is busy: the clip is sent again in ${secondsLeft(clip)} s.`,
    cancelled: clip.message,
    done: outdated ? "The options have changed since this answer." : "",
  }[clip.state];
  byId("progress").textContent = progress ?? "";
  byId("progress").hidden = !progress;
  byId("progress").classList.toggle("working", clip.pending);
  byId("problem").textContent = clip.message;
  byId("problem").hidden = clip.state !== "failed";
  byId("cancel").hidden = !clip.pending;
  byId("again").hidden = clip.pending;
}

/** ends: where it is filled, between 0 and 1. */
function bar(name, [from, to], number) {
  const fill = make("span", { className: "fill" });
  fill.style.left = `${from * 100}%`;
  fill.style.width = `${(to - from) * 100}%`;
  const label = make("span", { className: "bar-name" }, name);
  if (typeof name === "string") label.title = name;
  const item = make("li", {}, label, make("span", { className: "bar" }, fill));
  item.append(make("span", { className: "number", textContent: number }));
  return item;
}

function noteOn(others, centred) {
  if (!others) return "Add clips to see which sound alike.";
  if (!centred) return "Raw cosine, often near 1 whatever the sounds. From three clips on their mean is taken off.";
  return `Cosine without the mean of the ${others + 1} clips: 1 is alike, 0 unrelated, −1 opposite.`;
}
