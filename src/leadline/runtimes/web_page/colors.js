// Colours for depth, as leadline.colors has them: near is bright yellow, far is dark violet, invalid is black.

const SAMPLES = 1 << 16;

export const isDisparity = (kind) => kind.endsWith('disparity');

/** The smallest value that counts: depth and scaled disparity are above zero where they are valid. */
const smallest = (kind) => (kind === 'relative_disparity' ? -Infinity : 0);

/** Whether a value counts: finite, and above zero where the kind has no other values. */
export const isValid = (kind, value) => Number.isFinite(value) && value > smallest(kind);

/** The 2nd and 98th percentile of the valid values, [0, 0] where there are none. */
export function displayRange(values, kind) {
  const least = smallest(kind);
  const counts = (value) => value > least && value < Infinity;
  let count = 0;
  for (let i = 0; i < values.length; i++) if (counts(values[i])) count++;
  if (count === 0) return [0, 0];
  const step = Math.max(1, Math.floor(count / SAMPLES));
  const taken = new Float32Array(Math.ceil(count / step));
  for (let i = 0, seen = 0; i < values.length; i++) {
    if (counts(values[i]) && seen++ % step === 0) taken[(seen - 1) / step] = values[i];
  }
  taken.sort();
  const at = (percent) => {
    const place = ((taken.length - 1) * percent) / 100;
    const below = Math.floor(place);
    const above = Math.min(below + 1, taken.length - 1);
    return taken[below] + (taken[above] - taken[below]) * (place - below);
  };
  return [at(2), at(98)];
}

/** Indices into the palette: 0 where not valid, 1 (far) to 255 (near) elsewhere, 128 where `lo` is `hi`. */
export function colorIndices(values, kind, lo, hi) {
  const single = Math.fround;
  const [least, low, high, near] = [smallest(kind), single(lo), single(hi), isDisparity(kind)];
  const gain = single(hi > lo ? 254 / (hi - lo) : 0);
  const out = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (!(value > least && value < Infinity)) continue;
    let position = single(single(Math.min(Math.max(value, low), high) - low) * gain);
    if (hi === lo) position = 127;
    out[i] = single(single(near ? position : 254 - position) + 1.5);
  }
  return out;
}

/** Opaque RGBA pixels of a map. `palette` is 256 x [red, green, blue]. */
export function colorize(values, kind, lo, hi, palette) {
  const packed = new Uint8ClampedArray(1024);
  palette.forEach((color, i) => packed.set([...color, 255], 4 * i));
  const table = new Uint32Array(packed.buffer);
  const indices = colorIndices(values, kind, lo, hi);
  const out = new Uint32Array(values.length);
  for (let i = 0; i < values.length; i++) out[i] = table[indices[i]];
  return new Uint8ClampedArray(out.buffer);
}

const SETTLES_IN_MS = 700;

/** One range over time: it follows a video slowly, so that colours do not flicker. */
export class SteadyRange {
  #range = null;
  #at = 0;

  /** Forget the past: another picture or film begins. */
  reset() {
    this.#range = null;
  }

  /** The range to show, `now` in milliseconds. */
  follow([lo, hi], now) {
    if (this.#range === null) this.#range = [lo, hi];
    const share = 1 - Math.exp(-Math.max(0, now - this.#at) / SETTLES_IN_MS);
    this.#range = this.#range.map((old, i) => old + share * ([lo, hi][i] - old));
    this.#at = now;
    return this.#range;
  }
}
