// The picture of a clip: waveform, spectrogram, words and events over one time axis, and the playhead.

import { envelope, RATE } from "./audio.js";
import { byId, clock, make, percent } from "./dom.js";
import { colourMap, height, paint, spectrogram } from "./spectrogram.js";

const SHORTEST_S = 0.2; // of what can be seen at a time
const TICK_PX = 72;
const TINY_PX = 8; // of a word: too narrow for its text
const MOST_COLUMNS = 1400;
const ANYWHERE = [" ", "ArrowLeft", "ArrowRight", "+", "=", "-", "0"]; // keys, when nothing has the focus
const FREQUENCIES = [250, 1000, 2000, 4000];
const COLOURS = {
  light: colourMap([[0.975, 0.004, 250], [0.87, 0.045, 235], [0.7, 0.1, 250], [0.48, 0.15, 275], [0.25, 0.1, 295]]),
  dark: colourMap([[0.2, 0.012, 265], [0.35, 0.09, 285], [0.52, 0.14, 330], [0.72, 0.15, 45], [0.95, 0.08, 95]]),
};

export class Plot {
  #clip = null;
  #view = { from: 0, to: 1 };
  #placed = []; // {element, start, end}: what stands at a time
  #words = [];
  #picture = null;
  #computing = new AbortController();
  #theme = "light";

  constructor(player) {
    this.player = player;
    this.seek = byId("seek");
    this.tracks = byId("over");
    byId("hertz").append(...FREQUENCIES.map(frequencyLabel));
    new ResizeObserver(() => this.#clip && this.#redraw()).observe(this.tracks);
    this.#listen();
  }

  /** A clip anew, with all of its length to be seen. */
  show(clip) {
    this.#clip = clip;
    this.#picture = null;
    this.tiers([], []);
    byId("plate").classList.toggle("unheard", !clip.samples);
    this.#look(0, clip.duration ?? 1);
  }

  /** Words, and events in a lane for each label. */
  tiers(words, events) {
    this.#words = words;
    const tier = words.map((word) => {
      const element = make("span", { className: "word", textContent: word.word });
      element.addEventListener("click", () => this.player.play(word.start, word.end));
      return { element, start: word.start, end: word.end };
    });
    byId("tier").replaceChildren(...tier.map(({ element }) => element));
    byId("tier-row").hidden = words.length === 0;
    const labels = [...new Set(events.map((event) => event.label))];
    const bars = events.map((event) => this.#bar(event, labels.indexOf(event.label)));
    byId("lanes").replaceChildren(
      ...labels.map((label) => {
        const lane = make("div", { className: "track lane" });
        lane.append(...bars.filter((bar) => bar.label === label).map((bar) => bar.element));
        const name = make("span", { className: "name", textContent: label, title: label });
        return make("div", { className: "row" }, name, lane);
      }),
    );
    this.#placed = [...tier, ...bars];
    this.#place();
  }

  recolour(theme) {
    this.#theme = theme;
    this.#draw();
  }

  /** Where the sound is now; the picture follows it. */
  moveTo(seconds) {
    const { from, to } = this.#view;
    if (this.player.playing && (seconds > to || seconds < from)) this.#look(seconds, seconds + to - from);
    this.#movePlayhead();
    this.#placed.forEach(({ element, start, end }) => {
      element.classList.toggle("now", this.player.playing && start <= seconds && seconds < end);
    });
    if (!this.player.playing) this.#tellPosition(seconds);
  }

  /** Keeps what is at a time where it is on the screen. */
  zoom(factor, around = this.player.position) {
    const { from, to } = this.#view;
    const held = around >= from && around <= to ? around : (from + to) / 2;
    this.#look(held - (held - from) / factor, held + (to - held) / factor);
  }

  whole() {
    this.#look(0, this.#clip.duration ?? 1);
  }

  #look(from, to) {
    const duration = this.#clip.duration ?? 1;
    const length = Math.min(duration, Math.max(SHORTEST_S, to - from));
    const start = Math.max(0, Math.min(from, duration - length));
    this.#view = { from: start, to: start + length };
    this.#compute();
    this.#redraw();
  }

  #redraw() {
    this.#draw();
    this.#place();
    this.#movePlayhead();
  }

  async #compute() {
    this.#computing.abort();
    const { samples } = this.#clip;
    if (!samples) return;
    this.#computing = new AbortController();
    const { signal } = this.#computing;
    const [from, to] = [this.#view.from * RATE, this.#view.to * RATE];
    const columns = Math.max(1, Math.min(MOST_COLUMNS, Math.round((to - from) / 48)));
    const picture = await spectrogram(samples, from, to, columns, signal);
    if (!picture || signal.aborted) return;
    this.#clip.loudest ??= picture.values.reduce((most, value) => Math.max(most, value));
    this.#picture = picture;
    this.#drawSpectrum();
  }

  #draw() {
    if (!this.#clip) return;
    this.#drawAxis();
    this.#drawWave();
    this.#drawSpectrum();
  }

  #drawAxis() {
    const { from, to } = this.#view;
    const step = roundStep(((to - from) * TICK_PX) / Math.max(1, this.tracks.clientWidth));
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    const ticks = [];
    for (let i = Math.ceil(from / step - 1e-9); i * step <= to + 1e-9; i++) {
      const tick = make("span", { className: "tick", textContent: tickLabel(i * step, digits) });
      tick.style.left = `${((i * step - from) / (to - from)) * 100}%`;
      ticks.push(tick);
    }
    byId("axis").replaceChildren(...ticks);
  }

  #drawWave() {
    const canvas = fitted(byId("wave"));
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    const { samples, peak } = this.#clip;
    if (!samples) return;
    const { low, high, rms } = envelope(samples, this.#view.from * RATE, this.#view.to * RATE, canvas.width);
    const middle = canvas.height / 2;
    const scale = (middle - 2) / Math.max(peak, 0.02);
    context.fillStyle = getComputedStyle(canvas).color;
    const bars = (opacity, top, bottom) => {
      context.globalAlpha = opacity;
      for (let x = 0; x < canvas.width; x++) {
        const y = middle - top(x) * scale;
        context.fillRect(x, y, 1, Math.max(1, middle - bottom(x) * scale - y));
      }
    };
    bars(0.5, (x) => high[x], (x) => low[x]);
    bars(1, (x) => Math.min(rms[x], high[x]), (x) => Math.max(-rms[x], low[x]));
  }

  #drawSpectrum() {
    const canvas = fitted(byId("spectrum"));
    if (this.#picture) paint(canvas, this.#picture, this.#clip.loudest, COLOURS[this.#theme]);
  }

  #place() {
    const { from, to } = this.#view;
    for (const { element, start, end } of this.#placed) {
      element.hidden = end < from || start > to;
      const [left, right] = [Math.max(start, from), Math.min(end, to)];
      element.style.left = `${((left - from) / (to - from)) * 100}%`;
      const part = Math.max(0, right - left) / (to - from);
      element.style.width = `${part * 100}%`;
      element.classList.toggle("tiny", part * this.tracks.clientWidth < TINY_PX);
    }
  }

  #movePlayhead() {
    const { from, to } = this.#view;
    const place = (this.player.position - from) / (to - from);
    byId("playhead").hidden = !this.#clip?.samples || place < 0 || place > 1;
    byId("playhead").style.left = `${place * 100}%`;
  }

  #tellPosition(seconds) {
    const word = this.#words.find(({ start, end }) => start <= seconds && seconds < end);
    this.seek.setAttribute("aria-valuemax", (this.#clip?.duration ?? 0).toFixed(2));
    this.seek.setAttribute("aria-valuenow", seconds.toFixed(2));
    this.seek.setAttribute("aria-valuetext", clock(seconds) + (word ? `, ${word.word}` : ""));
  }

  #bar({ label, start, end, score }, lane) {
    const times = `${clock(start)} to ${clock(end)}, ${percent(score)}`;
    const element = make("button", { type: "button", className: `event hue${lane % 6}`, title: times });
    element.append(make("span", { textContent: percent(score) }));
    element.setAttribute("aria-label", `${label}, ${times}`);
    element.addEventListener("click", () => this.player.play(start, end));
    return { element, label, start, end };
  }

  #timeAt(event) {
    const box = this.tracks.getBoundingClientRect();
    const part = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    return this.#view.from + part * (this.#view.to - this.#view.from);
  }

  #listen() {
    const { seek, player } = this;
    seek.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      seek.setPointerCapture(event.pointerId);
      player.seek(this.#timeAt(event));
    });
    seek.addEventListener("pointermove", (event) => {
      if (seek.hasPointerCapture(event.pointerId)) player.seek(this.#timeAt(event));
    });
    document.addEventListener("keydown", (event) => {
      const here = event.target === seek || (event.target === document.body && ANYWHERE.includes(event.key));
      if (!here || !this.#clip || event.ctrlKey || event.metaKey || event.altKey) return;
      const act = this.#keys(event.shiftKey)[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    seek.addEventListener(
      "wheel",
      (event) => {
        const span = this.#view.to - this.#view.from;
        if (event.ctrlKey) this.zoom(Math.exp(-event.deltaY / 200), this.#timeAt(event));
        else if (event.deltaX && span < this.#clip.duration) {
          const by = (event.deltaX / this.tracks.clientWidth) * span;
          this.#look(this.#view.from + by, this.#view.to + by);
        } else return;
        event.preventDefault();
      },
      { passive: false },
    );
  }

  #keys(far) {
    const duration = this.#clip?.duration ?? 0;
    const to = (seconds) => () => {
      const target = Math.max(0, Math.min(duration, seconds));
      this.player.seek(target);
      this.#reveal(target);
    };
    const { position } = this.player;
    const step = far ? 1 : 0.1;
    return {
      ArrowLeft: to(position - step),
      ArrowRight: to(position + step),
      ArrowDown: to(position - step),
      ArrowUp: to(position + step),
      PageDown: to(position - 5),
      PageUp: to(position + 5),
      Home: to(0),
      End: to(duration),
      " ": () => (this.player.playing ? this.player.pause() : this.player.play()),
      "+": () => this.zoom(2),
      "=": () => this.zoom(2),
      "-": () => this.zoom(0.5),
      0: () => this.whole(),
    };
  }

  #reveal(seconds) {
    const { from, to } = this.#view;
    if (seconds < from || seconds > to) this.#look(seconds - (to - from) / 2, seconds + (to - from) / 2);
  }
}

function frequencyLabel(frequency) {
  const text = frequency < 1000 ? String(frequency) : `${frequency / 1000}k`;
  const label = make("span", { textContent: text });
  label.style.bottom = `${height(frequency) * 100}%`;
  return label;
}

/** A canvas as large as it is shown. */
function fitted(canvas) {
  const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  const tall = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== tall) canvas.height = tall;
  return canvas;
}

/** The next of 1, 2, 5, 10, 20, ...; above a minute, of what clocks are divided in. */
function roundStep(least) {
  const clocks = [10, 15, 30, 60, 120, 300, 600, 900, 1800];
  if (least > 5) return clocks.find((step) => step >= least) ?? 3600;
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least * 0.999);
}

function tickLabel(seconds, digits) {
  if (seconds < 60) return seconds.toFixed(digits);
  const whole = Math.floor(seconds / 60);
  const rest = (seconds - whole * 60).toFixed(digits);
  return `${whole}:${rest.padStart(digits ? digits + 3 : 2, "0")}`;
}
