// Mel spectrograms: a Fourier transform, bands that are even on the mel scale, and colours.

import { RATE } from "./audio.js";

const SIZE = 1024; // of the transform; the window is half of it, for the mel bands' sake
const WINDOW = 512; // 32 ms
const BANDS = 112;
const RANGE_DB = 72;
const PAUSE_MS = 12; // of work between two looks at what the user does
const FRAMES_IN_COLUMN = 4;

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertz = (value) => 700 * (10 ** (value / 2595) - 1);

/** Where a frequency is: 0 at the bottom of the picture, 1 at its top. */
export const height = (frequency) => mel(frequency) / mel(RATE / 2);

/**
 * Decibels between two samples, {columns, bands, values}: column by column, the lowest band first.
 * Null if `signal` is aborted meanwhile.
 */
export async function spectrogram(samples, from, to, columns, signal) {
  const transform = new Transform(SIZE);
  const bands = melBands();
  const hann = Float32Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
  const step = (to - from) / columns;
  const frames = Math.max(1, Math.min(FRAMES_IN_COLUMN, Math.round(step / WINDOW)));
  const values = new Float32Array(columns * BANDS);
  let resumed = performance.now();
  for (let column = 0; column < columns; column++) {
    const power = new Float32Array(SIZE / 2 + 1);
    for (let frame = 0; frame < frames; frame++) {
      const middle = from + step * (column + (frame + 0.5) / frames);
      transform.load(samples, Math.round(middle - WINDOW / 2), hann);
      transform.run();
      transform.addPower(power);
    }
    bands.forEach(({ first, weights }, band) => {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * power[first + i];
      values[column * BANDS + band] = 10 * Math.log10(sum / frames + 1e-10);
    });
    if (performance.now() - resumed > PAUSE_MS) {
      await new Promise((resume) => setTimeout(resume));
      if (signal.aborted) return null;
      resumed = performance.now();
    }
  }
  return { columns, bands: BANDS, values };
}

/** Draws it over a whole canvas; `top` decibels have the last colour. */
export function paint(canvas, { columns, bands, values }, top, colours) {
  const picture = new ImageData(columns, bands);
  for (let column = 0; column < columns; column++) {
    for (let band = 0; band < bands; band++) {
      const level = (values[column * bands + band] - top) / RANGE_DB + 1;
      const colour = Math.round(Math.max(0, Math.min(1, level)) * 255) * 3;
      const at = ((bands - 1 - band) * columns + column) * 4;
      picture.data[at] = colours[colour];
      picture.data[at + 1] = colours[colour + 1];
      picture.data[at + 2] = colours[colour + 2];
      picture.data[at + 3] = 255;
    }
  }
  const small = new OffscreenCanvas(columns, bands);
  small.getContext("2d").putImageData(picture, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** 256 colours from silence to the loudest, with even steps of lightness. stops: [L, C, hue] in OKLCH. */
export function colourMap(stops) {
  const colours = new Uint8ClampedArray(256 * 3);
  const points = stops.map(([light, chroma, hue]) => {
    const angle = (hue * Math.PI) / 180;
    return [light, chroma * Math.cos(angle), chroma * Math.sin(angle)];
  });
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (points.length - 1);
    const below = Math.min(Math.floor(place), points.length - 2);
    const part = place - below;
    const lab = points[below].map((value, axis) => value + part * (points[below + 1][axis] - value));
    colours.set(fromOklab(lab), i * 3);
  }
  return colours;
}

function fromOklab([light, a, b]) {
  const long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * middle + 1.707614701 * short,
  ];
  return linear.map((value) => 255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
}

/** Triangles, each at least one bin wide: where mel bands are narrower than bins, they share them. */
function melBands() {
  const bin = RATE / SIZE;
  const edge = (band) => hertz((mel(RATE / 2) * band) / (BANDS + 1)) / bin;
  return Array.from({ length: BANDS }, (_, band) => {
    const middle = edge(band + 1);
    const left = Math.max(1, middle - edge(band));
    const right = Math.max(1, edge(band + 2) - middle);
    const first = Math.max(0, Math.ceil(middle - left));
    const last = Math.min(SIZE / 2, Math.floor(middle + right));
    const weights = [];
    for (let i = first; i <= last; i++) {
      weights.push(1 - (i < middle ? (middle - i) / left : (i - middle) / right));
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** The fast Fourier transform, radix 2, in place. */
class Transform {
  constructor(size) {
    this.size = size;
    this.real = new Float32Array(size);
    this.imaginary = new Float32Array(size);
    this.cos = Float32Array.from({ length: size / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sin = Float32Array.from({ length: size / 2 }, (_, i) => Math.sin((2 * Math.PI * i) / size));
    const bits = Math.log2(size);
    this.reversed = Uint16Array.from({ length: size }, (_, i) => {
      let mirrored = 0;
      for (let bit = 0; bit < bits; bit++) mirrored |= ((i >> bit) & 1) << (bits - 1 - bit);
      return mirrored;
    });
  }

  /** Windowed samples in the order that `run` wants; silence beyond both ends. */
  load(samples, from, window) {
    this.real.fill(0);
    this.imaginary.fill(0);
    for (let i = 0; i < window.length; i++) {
      this.real[this.reversed[i]] = (samples[from + i] ?? 0) * window[i];
    }
  }

  run() {
    const { size, real, imaginary, cos, sin } = this;
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half);
      for (let start = 0; start < size; start += 2 * half) {
        for (let i = 0; i < half; i++) {
          const [a, b] = [start + i, start + i + half];
          const [c, s] = [cos[i * stride], sin[i * stride]];
          const x = real[b] * c + imaginary[b] * s;
          const y = imaginary[b] * c - real[b] * s;
          real[b] = real[a] - x;
          imaginary[b] = imaginary[a] - y;
          real[a] += x;
          imaginary[a] += y;
        }
      }
    }
  }

  addPower(power) {
    for (let i = 0; i < power.length; i++) power[i] += this.real[i] ** 2 + this.imaginary[i] ** 2;
  }
}
