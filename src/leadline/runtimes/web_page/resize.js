// Resizing as leadline.image.resize does it: the same taps, the same order of passes, the same roundings to 8 bits.

/** A picture or a map: `data` holds height x width x channels values, row by row. */
export function plane(data, height, width, channels) {
  return { data, height, width, channels };
}

/**
 * Resize a picture (Uint8Clamped) or a map (Float32).
 *
 * With antialiasing the kernel widens when shrinking (Pillow's rule) and the type stays; without it, or with
 * `alignCorners`, OpenCV's and torch's plain rule gives Float32.
 */
export function resize(values, height, width, interpolation, { antialias = true, alignCorners = false } = {}) {
  if (values.height === height && values.width === width) return values;
  if (interpolation === 'nearest') return nearest(values, height, width);
  if (antialias && !alignCorners) return smoothed(values, height, width, interpolation);
  const rows = plainTaps(values.height, height, interpolation, alignCorners);
  const columns = plainTaps(values.width, width, interpolation, alignCorners);
  return alongRows(alongColumns(values, rows, height), columns, width);
}

function nearest(values, height, width) {
  const { data, channels } = values;
  const out = new data.constructor(height * width * channels);
  const from = (n, m) => Int32Array.from({ length: m }, (_, i) => Math.min((i + 0.5) * (n / m), n - 1));
  const rows = from(values.height, height);
  const columns = from(values.width, width);
  let at = 0;
  for (const row of rows) {
    for (const column of columns) {
      const start = (row * values.width + column) * channels;
      for (let c = 0; c < channels; c++) out[at++] = data[start + c];
    }
  }
  return plane(out, height, width, channels);
}

/** Pillow's resampling: along rows first; a picture is rounded to 8 bits after each pass. */
function smoothed(values, height, width, interpolation) {
  const in8bits = !(values.data instanceof Float32Array);
  if (values.width !== width) values = alongRows(values, wideTaps(values.width, width, interpolation, in8bits), width);
  if (values.height === height) return values;
  return alongColumns(values, wideTaps(values.height, height, interpolation, in8bits), height);
}

const STEPS = 1 << 22; // Pillow's weights for 8-bit pictures are whole numbers of 1/STEPS

/** For each output position the source indices and their weights, one after the other; outer weights may be 0. */
function wideTaps(source, target, interpolation, in8bits) {
  const scale = source / target;
  const stretch = Math.max(scale, 1);
  const support = (interpolation === 'bicubic' ? 2 : 1) * stretch;
  const kernel = interpolation === 'bicubic' ? (x) => cubic(x, -0.5) : (x) => Math.max(0, 1 - x);
  const taps = Math.ceil(support) * 2 + 1;
  const index = new Int32Array(target * taps);
  const weights = new Float64Array(target * taps);
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(source, Math.trunc(centre + support + 0.5));
    const raw = [];
    for (let x = first; x < end; x++) raw.push(kernel(Math.abs((x - centre + 0.5) * (1 / stretch))));
    const sum = raw.reduce((a, b) => a + b, 0);
    for (let k = 0; k < taps; k++) {
      const weight = k < raw.length ? raw[k] / sum : 0;
      index[i * taps + k] = Math.min(first + k, source - 1);
      weights[i * taps + k] = in8bits ? Math.trunc(weight * STEPS + (weight < 0 ? -0.5 : 0.5)) / STEPS : weight;
    }
  }
  return { index, weights, taps, in8bits };
}

/** The same without smoothing: two or four taps, edges replicated. */
function plainTaps(source, target, interpolation, alignCorners) {
  const offsets = interpolation === 'bicubic' ? [-1, 0, 1, 2] : [0, 1];
  const taps = offsets.length;
  const index = new Int32Array(target * taps);
  const weights = new Float64Array(target * taps);
  for (let i = 0; i < target; i++) {
    let centre = alignCorners ? i * ((source - 1) / Math.max(target - 1, 1)) : (i + 0.5) * (source / target) - 0.5;
    if (interpolation === 'bilinear') centre = Math.min(Math.max(centre, 0), source - 1);
    const left = Math.floor(centre);
    offsets.forEach((offset, k) => {
      const distance = Math.abs(centre - left - offset);
      index[i * taps + k] = Math.min(Math.max(left + offset, 0), source - 1);
      weights[i * taps + k] = interpolation === 'bicubic' ? cubic(distance, -0.75) : 1 - distance;
    });
  }
  return { index, weights, taps, in8bits: false };
}

/** Keys' cubic kernel at x >= 0: a = -0.5 in Pillow, -0.75 in OpenCV and torch. */
function cubic(x, a) {
  if (x < 1) return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1;
  return x < 2 ? a * x ** 3 - 5 * a * x ** 2 + 8 * a * x - 4 * a : 0;
}

function alongRows(values, { index, weights, taps, in8bits }, width) {
  const { data, height, channels } = values;
  const out = in8bits ? new Uint8ClampedArray(height * width * channels) : new Float32Array(height * width * channels);
  let at = 0;
  for (let y = 0; y < height; y++) {
    const start = y * values.width * channels;
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < channels; c++) {
        let sum = in8bits ? 0.5 : 0;
        for (let k = x * taps; k < (x + 1) * taps; k++) sum += data[start + index[k] * channels + c] * weights[k];
        out[at++] = in8bits ? Math.floor(sum) : sum;
      }
    }
  }
  return plane(out, height, width, channels);
}

function alongColumns(values, { index, weights, taps, in8bits }, height) {
  const { data, width, channels } = values;
  const stride = width * channels;
  const out = in8bits ? new Uint8ClampedArray(height * stride) : new Float32Array(height * stride);
  const sums = new Float64Array(stride);
  for (let y = 0; y < height; y++) {
    sums.fill(in8bits ? 0.5 : 0);
    for (let k = y * taps; k < (y + 1) * taps; k++) {
      const [start, weight] = [index[k] * stride, weights[k]];
      if (weight !== 0) for (let i = 0; i < stride; i++) sums[i] += data[start + i] * weight;
    }
    for (let i = 0; i < stride; i++) out[y * stride + i] = in8bits ? Math.floor(sums[i]) : sums[i];
  }
  return plane(out, height, width, channels);
}
