// Sound in the browser: from files to samples, from samples to files, and to the loudspeaker.

/** What models hear; pictures and playback are of the same. */
export const RATE = 16_000;
const MOST_LOOKED_AT = 4000;

/** All channels' mean at 16 kHz. Throws where the browser cannot read the format. */
export async function decode(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const buffer = await context.decodeAudioData(await file.arrayBuffer());
  if (buffer.numberOfChannels === 1) return buffer.getChannelData(0);
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const data = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += data[i] / buffer.numberOfChannels;
  }
  return mono;
}

/** A mono WAV of 16 bits, which every server reads. */
export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, name) => [...name].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i++) {
    const sample = Math.max(-1, Math.min(1, samples[i]));
    view.setInt16(44 + 2 * i, Math.round(sample * 32767), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

/**
 * Lowest and highest sample, and the root mean square, of `columns` equal parts between two samples; in long
 * parts only some are looked at.
 */
export function envelope(samples, from, to, columns) {
  const low = new Float32Array(columns);
  const high = new Float32Array(columns);
  const rms = new Float32Array(columns);
  for (let column = 0; column < columns; column++) {
    const first = Math.floor(from + ((to - from) * column) / columns);
    const last = Math.max(first + 1, Math.floor(from + ((to - from) * (column + 1)) / columns));
    let squares = 0;
    let lowest = Infinity;
    let highest = -Infinity;
    const stride = Math.ceil((last - first) / MOST_LOOKED_AT);
    for (let i = first; i < last; i += stride) {
      const sample = samples[i] ?? 0;
      if (sample < lowest) lowest = sample;
      if (sample > highest) highest = sample;
      squares += sample * sample;
    }
    low[column] = lowest;
    high[column] = highest;
    rms[column] = Math.sqrt(squares / Math.ceil((last - first) / stride));
  }
  return { low, high, rms };
}

/** Plays one clip at a time, from anywhere. Calls `onmove(seconds)` as it goes, `onstate()` at its turns. */
export class Player {
  #context = null;
  #source = null;
  #buffer = null;
  #samples = null;
  #began = 0;
  #from = 0;
  #until = 0;

  constructor() {
    this.position = 0;
    this.onmove = () => {};
    this.onstate = () => {};
  }

  get playing() {
    return this.#source !== null;
  }

  load(samples) {
    this.pause();
    this.#samples = samples;
    this.#buffer = null;
    this.seek(0);
  }

  /** Keeps playing, if it does. */
  seek(seconds) {
    const playing = this.playing;
    this.pause();
    this.position = seconds;
    this.onmove(seconds);
    if (playing) this.play();
  }

  play(from = this.position, until = this.#end()) {
    this.pause();
    if (!this.#samples) return;
    if (from >= this.#end() - 0.01) from = 0;
    this.#context ??= new AudioContext();
    this.#context.resume();
    if (!this.#buffer) {
      this.#buffer = this.#context.createBuffer(1, this.#samples.length, RATE);
      this.#buffer.copyToChannel(this.#samples, 0);
    }
    const source = this.#context.createBufferSource();
    source.buffer = this.#buffer;
    source.connect(this.#context.destination);
    source.onended = () => this.#source === source && this.#finish();
    this.#source = source;
    this.#began = this.#context.currentTime;
    this.#from = from;
    this.#until = Math.min(until, this.#end());
    source.start(0, from, this.#until - from);
    this.onstate();
    this.#tick(source);
  }

  pause() {
    if (!this.#source) return;
    const source = this.#source;
    this.#source = null;
    source.stop();
    this.onstate();
  }

  #end() {
    return (this.#samples?.length ?? 0) / RATE;
  }

  #finish() {
    this.#source = null;
    this.position = this.#until;
    this.onmove(this.position);
    this.onstate();
  }

  #tick(source) {
    if (this.#source !== source) return;
    const heard = this.#context.currentTime - this.#began - (this.#context.outputLatency || 0);
    this.position = Math.min(this.#until, this.#from + Math.max(0, heard));
    this.onmove(this.position);
    requestAnimationFrame(() => this.#tick(source));
  }
}
