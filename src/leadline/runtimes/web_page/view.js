// What is seen: picture and depth, the colour scale, the value under the pointer, downloads.

import { isDisparity, isValid } from './colors.js';
import { npy } from './npy.js';
import { download } from './page.js';

const at = (id) => document.getElementById(id);
const shown = { values: null, height: 0, width: 0, name: 'depth' };
const probe = { x: -1, y: -1 };
let kind = 'metric_depth';

/** What the values are, in words. */
export const KINDS = {
  metric_depth: 'depth in metres',
  relative_depth: 'relative depth: no unit, larger is farther',
  relative_disparity: 'relative disparity: no unit, larger is nearer',
  scaled_disparity: 'scaled disparity: no unit, larger is nearer',
};

/** Set the page up for a network. */
export function describe(settings) {
  kind = settings.contract.output.kind;
  at('name').textContent = settings.contract.name;
  at('about').textContent = `${KINDS[kind]} · ${settings.precision}`;
  document.title = `Depth: ${settings.contract.name}`;
  const scale = at('scale').getContext('2d');
  const colors = settings.palette.slice(1).flatMap((color) => [...color, 255]);
  scale.putImageData(new ImageData(new Uint8ClampedArray(colors), 255, 1), 0, 0);
}

/** Say something; a fault is read out at once. */
export function tell(text, isFault = false) {
  const place = at('message');
  place.setAttribute('role', isFault ? 'alert' : 'status');
  place.classList.toggle('fault', isFault);
  place.textContent = text;
}

/** Show a result beside the frame that it belongs to. */
export function show(frame, result, name) {
  const { width, height } = frame;
  for (const id of ['picture', 'depth']) {
    if (at(id).width !== width) at(id).width = width;
    if (at(id).height !== height) at(id).height = height;
  }
  at('picture').getContext('2d').drawImage(frame, 0, 0);
  at('depth').getContext('2d').putImageData(new ImageData(result.colors, width, height), 0, 0);
  Object.assign(shown, { values: result.values, height, width, name });
  const [far, near] = isDisparity(kind) ? [result.lo, result.hi] : [result.hi, result.lo];
  at('far').textContent = `far ${worded(far)}`;
  at('near').textContent = `${worded(near)} near`;
  at('empty').hidden = true;
  at('save-values').disabled = at('save-colors').disabled = false;
  read();
}

function worded(value) {
  return kind === 'metric_depth' ? `${value.toFixed(2)} m` : Number(value.toPrecision(4)).toString();
}

function read() {
  const { values, width, height } = shown;
  const inside = values && probe.x >= 0 && probe.y >= 0 && probe.x < width && probe.y < height;
  at('mark').hidden = !inside;
  if (!inside) {
    at('probe').textContent = 'Point at the picture or its depth to read a value.';
    return;
  }
  const value = values[probe.y * width + probe.x];
  const unit = kind === 'metric_depth' ? '' : ` (${KINDS[kind]})`;
  const text = isValid(kind, value) ? worded(value) + unit : 'no value';
  at('probe').textContent = `${text} at column ${probe.x}, row ${probe.y}`;
  const box = drawn(at('depth'));
  const stage = at('stage').getBoundingClientRect();
  at('mark').style.left = `${box.left - stage.left + ((probe.x + 0.5) / width) * box.width}px`;
  at('mark').style.top = `${box.top - stage.top + ((probe.y + 0.5) / height) * box.height}px`;
}

/** Where the map lies within its canvas, which may be wider or higher than the map. */
function drawn(canvas) {
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / shown.width, box.height / shown.height);
  const [width, height] = [shown.width * scale, shown.height * scale];
  return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function readByKey(event) {
  const step = STEPS[event.key];
  if (!step || !shown.values) return;
  event.preventDefault();
  if (probe.x < 0) Object.assign(probe, { x: shown.width >> 1, y: shown.height >> 1 });
  const far = event.shiftKey ? 10 : 1;
  probe.x = Math.min(Math.max(probe.x + far * step[0], 0), shown.width - 1);
  probe.y = Math.min(Math.max(probe.y + far * step[1], 0), shown.height - 1);
  read();
}

function readByPointer(event) {
  const box = drawn(event.currentTarget);
  probe.x = Math.floor(((event.clientX - box.left) / box.width) * shown.width);
  probe.y = Math.floor(((event.clientY - box.top) / box.height) * shown.height);
  read();
}

/** Show measured times; `rate` is null for a single picture. */
export function showNumbers(result, rate) {
  const ms = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
  at('rate').textContent = rate === null ? '–' : rate.toFixed(1);
  at('ms-network').textContent = ms(result.ms.network);
  at('ms-before').textContent = ms(result.ms.before);
  at('ms-after').textContent = ms(result.ms.after);
  at('size').textContent = `${result.size[0]} × ${result.size[1]} (height × width)`;
}

/** Connect what needs no network: views, pointer, keys, downloads. */
export function connect() {
  at('view').onchange = () => {
    at('stage').dataset.view = at('view').value;
    at('split-row').hidden = at('view').value !== 'slider';
    read();
  };
  at('split').oninput = () => at('stage').style.setProperty('--split', `${at('split').value}%`);
  for (const canvas of [at('picture'), at('depth')]) {
    canvas.addEventListener('pointermove', readByPointer);
    canvas.addEventListener('pointerdown', readByPointer);
  }
  at('depth').addEventListener('keydown', readByKey);
  addEventListener('resize', read);
  at('save-values').onclick = () => {
    const { values, height, width, name } = shown;
    download(new Blob([npy(values, height, width)], { type: 'application/octet-stream' }), `${name}.npy`);
  };
  at('save-colors').onclick = () => at('depth').toBlob((blob) => download(blob, `${shown.name}_color.png`));
}
