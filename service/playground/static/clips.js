// Clips, and the queue that sends them, a few at a time.

import { analyse } from "./service.js";
import { decode, envelope, RATE } from "./audio.js";

const AT_ONCE = 3;
const LARGEST_DECODED = 64 << 20; // bytes of a file; the browser holds more than ten times as much
const KEPT_S = 120; // longer clips are decoded again when they are looked at
const THUMBNAIL = 48; // columns

/** state: waiting, sending, busy (the service is; until `retryAt`), done, failed (`message`), cancelled. */
export class Clip {
  state = "waiting";
  message = "";
  answer = null;
  options = null; // what the answer is to
  space = null; // clips of the same one have vectors that can be compared
  times = null; // {inference, total} in milliseconds
  retryAt = 0;
  controller = null;
  duration = null;
  samples = null;
  peak = null;
  loudest = null; // decibels in the spectrogram
  thumbnail = null;
  unreadable = ""; // why there is no picture

  /** made: here, and not on its user's disk yet. */
  constructor(file, made) {
    this.file = file;
    this.made = made;
    this.name = file.name || "clip";
  }

  get pending() {
    return ["waiting", "sending", "busy"].includes(this.state);
  }

  /** Sets its samples, or says why it cannot. */
  async read() {
    if (this.samples || this.unreadable) return;
    if (this.file.size > LARGEST_DECODED) {
      this.unreadable = "The file is too large to be drawn and played here; the service may still take it.";
      return;
    }
    try {
      this.samples = await decode(this.file);
    } catch {
      this.unreadable = "The browser cannot read this file: there is no picture and no sound.";
      return;
    }
    this.duration = this.samples.length / RATE;
    this.thumbnail ??= envelope(this.samples, 0, this.samples.length, THUMBNAIL);
    this.peak = this.samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
  }

  /** Lets go of the samples of a long clip. */
  rest() {
    if (this.duration > KEPT_S) this.samples = null;
  }
}

/** onchange(clip) after every change of a clip; onkey(message) when the service wants a key. */
export class Queue {
  #waiting = [];
  #running = 0;
  #paused = true;

  constructor(request, onchange, onkey) {
    this.request = request; // () => {options, space}: what is asked of clips from now on
    this.onchange = onchange;
    this.onkey = onkey;
  }

  add(clip) {
    this.#change(clip, "waiting");
    this.#waiting.push(clip);
    this.#pump();
  }

  cancel(clip) {
    if (!clip.pending) return;
    this.#waiting = this.#waiting.filter((other) => other !== clip);
    clip.controller?.abort();
    this.#change(clip, "cancelled", "This analysis was cancelled.");
  }

  /** From the time that there is a model, and a key if one is needed. */
  resume() {
    this.#paused = false;
    this.#pump();
  }

  #pump() {
    while (!this.#paused && this.#waiting.length && this.#running < AT_ONCE) {
      this.#running++;
      this.#send(this.#waiting.shift()).finally(() => {
        this.#running--;
        this.#pump();
      });
    }
  }

  async #send(clip) {
    const { options, space } = this.request();
    const controller = new AbortController();
    Object.assign(clip, { controller, answer: null, options, space: null });
    this.#change(clip, "sending");
    const began = performance.now();
    try {
      const { json, headers } = await analyse(clip.file, clip.name, options, controller.signal);
      clip.answer = json;
      clip.space = space;
      clip.duration ??= json.usage.seconds;
      clip.times = {
        inference: Number(headers.get("X-Inference-Time")),
        total: performance.now() - began,
      };
      this.#change(clip, "done");
    } catch (error) {
      if (!controller.signal.aborted) this.#refused(clip, error, controller.signal);
    }
  }

  #refused(clip, error, signal) {
    if (error.status === 401) {
      this.#paused = true;
      this.#waiting.unshift(clip);
      this.#change(clip, "waiting");
      this.onkey(error.message);
    } else if ([429, 503].includes(error.status) && error.retryAfter !== null) {
      clip.retryAt = Date.now() + error.retryAfter * 1000;
      this.#change(clip, "busy", error.message);
      const waiting = setInterval(() => {
        const over = Date.now() >= clip.retryAt;
        if (over || signal.aborted) clearInterval(waiting);
        if (over && !signal.aborted) this.add(clip);
        else this.onchange(clip);
      }, 500);
    } else {
      this.#change(clip, "failed", error.message);
    }
  }

  #change(clip, state, message = "") {
    clip.state = state;
    clip.message = message;
    this.onchange(clip);
  }
}
