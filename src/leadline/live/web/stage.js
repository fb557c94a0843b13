// What is seen of a result: picture and depth, beside each other or under a slider, the scale, the value at a point.

import { colorize, isDisparity, isValid } from './colors.js';

const at = (id) => document.getElementById(id);
const result = { frame: null, values: null, height: 0, width: 0, kind: '', lo: 0, hi: 0 };
const probe = { x: -1, y: -1 }; // in pixels of the map
const scratch = document.createElement('canvas');
let map = [];

const WORDS = {
  metric_depth: 'metres',
  relative_depth: 'relative depth, no unit: larger is farther',
  relative_disparity: 'relative disparity, no unit: larger is nearer',
  scaled_disparity: 'scaled disparity, no unit: larger is nearer',
};

/** What the values of a kind are, in words. */
export const worded = (kind) => WORDS[kind] ?? kind;

/** The result that is shown: {frame, values, height, width, kind, lo, hi}. */
export const shown = () => result;

/** Show a map beside the frame that it belongs to. */
export function show(next) {
  Object.assign(result, next);
  const { width, height } = next.frame;
  for (const id of ['picture', 'depth']) {
    if (at(id).width !== width) at(id).width = width;
    if (at(id).height !== height) at(id).height = height;
  }
  at('stage').style.setProperty('--ratio', width / height);
  at('stage').classList.remove('blank');
  at('picture').getContext('2d').drawImage(next.frame, 0, 0);
  paint();
}

/** Choose a colour map: 256 x [red, green, blue]. */
export function useMap(colours) {
  map = colours;
  const scale = at('scale').getContext('2d');
  scale.putImageData(new ImageData(new Uint8ClampedArray(map.slice(1).flatMap((c) => [...c, 255])), 255, 1), 0, 0);
  if (result.values) paint();
}

function paint() {
  const { values, width, height, kind, lo, hi } = result;
  [scratch.width, scratch.height] = [width, height];
  scratch.getContext('2d').putImageData(new ImageData(colorize(values, kind, lo, hi, map), width, height), 0, 0);
  const canvas = at('depth');
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
  const [far, near] = isDisparity(kind) ? [lo, hi] : [hi, lo];
  at('far').textContent = `far ${number(far)}`;
  at('near').textContent = `${number(near)} near`;
  read();
}

function number(value) {
  return result.kind === 'metric_depth' ? `${value.toFixed(2)} m` : Number(value.toPrecision(3)).toString();
}

function read() {
  const { values, width, height, kind } = result;
  const inside = values && probe.x >= 0 && probe.y >= 0 && probe.x < width && probe.y < height;
  at('mark').hidden = at('bubble').hidden = !inside;
  if (!inside) {
    at('probe').textContent = values ? `Point at the depth to read a value (${worded(kind)}).` : '';
    return;
  }
  const value = values[probe.y * width + probe.x];
  const text = isValid(kind, value) ? number(value) : 'no value';
  at('bubble').textContent = text;
  const unit = kind === 'metric_depth' ? '' : ` (${worded(kind)})`;
  at('probe').textContent = `${text} at column ${probe.x}, row ${probe.y}${unit}`;
  const [left, top] = [((probe.x + 0.5) / width) * 100, ((probe.y + 0.5) / height) * 100];
  for (const id of ['mark', 'bubble']) {
    at(id).style.left = `${id === 'bubble' ? Math.min(Math.max(left, 8), 92) : left}%`;
    at(id).style.top = `${id === 'bubble' ? Math.max(top, 12) : top}%`;
  }
}

function pointAt(event) {
  const box = at('depth').getBoundingClientRect();
  probe.x = Math.floor(((event.clientX - box.left) / box.width) * result.width);
  probe.y = Math.floor(((event.clientY - box.top) / box.height) * result.height);
  read();
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function readByKey(event) {
  const step = STEPS[event.key];
  if (!step || !result.values) return;
  event.preventDefault();
  if (probe.x < 0) Object.assign(probe, { x: result.width >> 1, y: result.height >> 1 });
  const far = event.shiftKey ? 10 : 1;
  probe.x = Math.min(Math.max(probe.x + far * step[0], 0), result.width - 1);
  probe.y = Math.min(Math.max(probe.y + far * step[1], 0), result.height - 1);
  read();
}

const isSlider = () => at('stage').dataset.view === 'slider';

function split(percent) {
  at('split').value = percent;
  at('stage').style.setProperty('--split', `${at('split').value}%`);
  place();
}

/** Put the dividing line where the slider is. */
function place() {
  at('divide').hidden = at('split-row').hidden = !isSlider();
  if (!isSlider()) return;
  const [box, stage] = [at('depth').getBoundingClientRect(), at('stage').getBoundingClientRect()];
  at('divide').style.left = `${box.left - stage.left + (box.width * at('split').value) / 100}px`;
}

function drag(event) {
  if (!isSlider() || !(event.buttons & 1)) return;
  const box = at('picture').getBoundingClientRect();
  split(((event.clientX - box.left) / box.width) * 100);
}

/** Choose `beside`, `slider` or `space`. */
export function view(name) {
  at('stage').dataset.view = name;
  at('space-figure').hidden = name !== 'space';
  at('reading').hidden = !result.values || name === 'space';
  place();
  read();
}

/** Connect pointer and keys. */
export function connect() {
  for (const id of ['picture', 'depth']) {
    at(id).addEventListener('pointerdown', (event) => {
      if (isSlider()) at(id).setPointerCapture(event.pointerId);
      drag(event);
    });
    at(id).addEventListener('pointermove', drag);
  }
  at('depth').addEventListener('pointerdown', pointAt);
  at('depth').addEventListener('pointermove', pointAt);
  at('depth').addEventListener('keydown', readByKey);
  at('split').oninput = () => split(at('split').value);
  new ResizeObserver(place).observe(at('stage'));
}
