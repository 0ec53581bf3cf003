// From the microphone to a WAV file.

import { address } from "./service.js";
import { wav } from "./audio.js";

const LONGEST_S = 600;

/** Why one cannot record here, or "". */
export function obstacle() {
  if (!window.isSecureContext) return "Recording needs https, or a page from localhost.";
  if (!navigator.mediaDevices || !window.AudioWorkletNode) return "This browser cannot record.";
  return "";
}

/** Records until `stop`, or ten minutes. `onlevel(peak, seconds)` is called as it goes, `onend(file)` once. */
export class Recorder {
  #blocks = [];
  #length = 0;
  #ended = false;

  constructor(onlevel, onend) {
    this.onlevel = onlevel;
    this.onend = onend;
  }

  /** Throws an Error in words where the microphone cannot be had. */
  async start() {
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}.`);
    }
    this.context = new AudioContext();
    try {
      await this.context.audioWorklet.addModule(address("playground/recorder-worklet.js"));
      const tap = new AudioWorkletNode(this.context, "tap", { numberOfOutputs: 0 });
      tap.port.onmessage = (event) => this.#take(event.data);
      this.context.createMediaStreamSource(this.stream).connect(tap);
      this.stream.getTracks()[0].onended = () => this.stop();
    } catch (error) {
      this.#release();
      throw new Error(`Recording failed: ${error.message}.`);
    }
  }

  stop() {
    if (this.#ended) return;
    this.#ended = true;
    this.#release();
    const samples = new Float32Array(this.#length);
    let at = 0;
    for (const block of this.#blocks) {
      samples.set(block, at);
      at += block.length;
    }
    this.onend(this.#length ? wav(samples, this.context.sampleRate) : null);
  }

  #take(block) {
    if (this.#ended) return;
    this.#blocks.push(block);
    this.#length += block.length;
    const seconds = this.#length / this.context.sampleRate;
    this.onlevel(block.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0), seconds);
    if (seconds >= LONGEST_S) this.stop();
  }

  #release() {
    this.stream.getTracks().forEach((track) => track.stop());
    this.context.close();
  }
}

const REASONS = {
  NotAllowedError: "The browser was not allowed to use the microphone.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is in use by another program.",
};
