// The contract of the network: from a picture to its input, and from its output to depth. See contract.json.

import { plane, resize } from './resize.js';

/** A fault that the page tells in words. */
export class Fault extends Error {}

/** [height, width] of the network's input for a picture of this size. */
export function sizeFor(contract, height, width) {
  const spec = contract.input;
  if (spec.resize === 'stretch') return [spec.height, spec.width];
  const scale = Math.max(spec.height / height, spec.width / width);
  return [rounded(spec, scale * height, spec.height), rounded(spec, scale * width, spec.width)];
}

function rounded(spec, side, atLeast) {
  const n = spec.multiple_of;
  const nearest = halfToEven(side / n) * n;
  const wanted = nearest >= atLeast ? nearest : Math.ceil(side / n) * n;
  return Math.min(wanted, Math.floor(spec.max_side / n) * n);
}

function halfToEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** Per input channel [gain, offset]: input = gain * (value in 0..255) + offset. */
function affine(spec) {
  return spec.mean.map((mean, c) => [spec.value_max / 255 / spec.std[c], -mean / spec.std[c]]);
}

/**
 * A picture as the network's input.
 *
 * @param rgba Uint8 pixels of the picture, opaque: height x width x 4.
 * @returns {{data: Float32Array, dims: number[]}} 1 x 3 x h x w.
 */
export function prepare(contract, rgba, height, width) {
  const spec = contract.input;
  const [h, w] = sizeFor(contract, height, width);
  const picture = plane(withoutAlpha(rgba), height, width, 3);
  const { data } = resize(picture, h, w, spec.interpolation, { antialias: spec.antialias });
  const out = new Float32Array(3 * h * w);
  const single = Math.fround;
  const order = spec.channels === 'bgr' ? [2, 1, 0] : [0, 1, 2];
  affine(spec).forEach(([gain, offset], target) => {
    const values = out.subarray(target * h * w, (target + 1) * h * w);
    const source = order[target];
    if (data instanceof Float32Array) {
      const [g, o] = [single(gain), single(offset)];
      for (let i = 0; i < values.length; i++) values[i] = single(data[3 * i + source] * g) + o;
    } else {
      const table = Float32Array.from({ length: 256 }, (_, grey) => grey * gain + offset);
      for (let i = 0; i < values.length; i++) values[i] = table[data[3 * i + source]];
    }
  });
  return { data: out, dims: [1, 3, h, w] };
}

function withoutAlpha(rgba) {
  const out = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    out[to] = rgba[from];
    out[to + 1] = rgba[from + 1];
    out[to + 2] = rgba[from + 2];
  }
  return out;
}

/**
 * The network's output as depth at the picture's size.
 *
 * @param output {{data: Float32Array, dims: number[]}} the map as the network returned it.
 * @param degrees horizontal field of view of the picture's camera, or null where it is unknown.
 * @returns {Float32Array} height x width.
 */
export function restore(contract, output, height, width, degrees = null) {
  const [h, w] = output.dims.slice(-2);
  if (output.data.length !== h * w) throw new Fault(`The network returned ${output.dims.join(' x ')}, not one map.`);
  if (!output.data.every(Number.isFinite)) throw new Fault('The network returned NaN or infinity.');
  const { data } = resize(plane(output.data, h, w, 1), height, width, 'bilinear', {
    alignCorners: contract.output.align_corners,
  });
  const factor = Math.fround(focalRatio(contract, height, width, degrees));
  return factor === 1 ? data : data.map((value) => value * factor);
}

/** Whether metres depend on a camera that training knew. */
export function hasCamera(contract) {
  return contract.input.camera !== null && contract.output.kind === 'metric_depth';
}

/** Focal length of this picture over that of training, both relative to the picture; 1 where unknown. */
export function focalRatio(contract, height, width, degrees) {
  if (!hasCamera(contract) || degrees === null) return 1;
  const focal = (0.5 * width) / Math.tan((degrees * Math.PI) / 360);
  const camera = contract.input.camera;
  return Math.sqrt((focal / width / camera.fx_over_width) * (focal / height / camera.fy_over_height));
}
