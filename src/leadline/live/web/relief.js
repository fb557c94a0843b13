// The picture as points in space, drawn with WebGL2.

import { Fault } from './contract.js';
import { isValid } from './colors.js';

const MOST_POINTS = 260_000;
const USUAL_ANGLE = 60; // degrees, of a camera that nobody named
const DEEPEST = 6; // times the median distance; beyond, skies would make everything else small
const LARGEST = 4; // times its own width that a point on a slope may cover of the way to its neighbour
const TORN = 12; // times its width, beyond which a point hangs between a thing and what is far behind it

const VERTEX = `#version 300 es
uniform mat3 turn;
uniform float lens, ratio, away, pixels, step_;
in vec4 place; // and its reach
in vec3 colour;
out vec3 shade;
void main() {
  vec3 seen = turn * (place.xyz - vec3(0, 0, 1)) + vec3(0, 0, away);
  gl_Position = vec4(seen.x * lens / ratio, -seen.y * lens, 0.5 * (seen.z - 0.1), seen.z);
  gl_PointSize = clamp(1.3 * step_ * place.z * place.w * pixels * lens / max(seen.z, 0.05), 1.0, 40.0);
  shade = colour;
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
in vec3 shade;
out vec4 result;
void main() { result = vec4(shade, 1); }`;

/** How far each value is, in medians; NaN where nothing is known. Tells what the shape can be trusted for. */
export function distances(values, kind, lo, hi) {
  const spread = hi - lo || 1;
  const far = {
    metric_depth: (v) => v,
    scaled_disparity: (v) => 1 / v,
    relative_disparity: (v) => 1 / (0.12 + 0.88 * Math.max(0, (v - lo) / spread)),
    relative_depth: (v) => 1 + 3 * Math.max(0, (v - lo) / spread),
  }[kind];
  const out = Float32Array.from(values, (v) => (isValid(kind, v) ? far(v) : NaN));
  const known = out.filter((z) => z > 0).sort();
  const median = known[known.length >> 1] || 1;
  return out.map((z) => (z > 0 ? Math.min(z / median, DEEPEST) : NaN));
}

/** How far it is from a point to its neighbours, in its own widths: 1 on what faces the camera, more on slopes. */
function reach(far, here, every, step) {
  const z = far[here];
  const next = Math.abs(z - (far[here + every] ?? z));
  const last = Math.abs(z - (far[here - every] ?? z));
  return Math.hypot(1, Math.max(next || 0, last || 0) / (step * z));
}

const ORIGINS = { given: 'as given', exif: 'as the file says', assumed: 'as in the model’s training' };

/** What is certain about the shape. */
export function shapeNote({ kind, camera, fov }) {
  const lens = `for a field of view of ${fov ? Math.round(fov) : USUAL_ANGLE}°, ${ORIGINS[camera] ?? 'which is a guess'}`;
  if (kind === 'metric_depth') return `In proportion ${lens}.`;
  if (kind === 'scaled_disparity') return `In proportion up to one scale, ${lens}.`;
  return 'An impression: the model gives relative values, so how deep the scene is remains open.';
}

/** Points on a canvas. */
export class Relief {
  #gl;
  #at = {};
  #buffers = {};
  #count = 0;
  #step = 0.01;
  #queued = false;
  #pose = { yaw: 0, pitch: 0, away: 1 };

  constructor(canvas) {
    const gl = canvas.getContext('webgl2', { antialias: true, alpha: true });
    if (!gl) throw new Fault('The 3-D view needs WebGL2, which this browser does not offer.');
    this.canvas = canvas;
    this.#gl = gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Fault(`WebGL2: ${gl.getProgramInfoLog(program)}`);
    gl.useProgram(program);
    for (const name of ['turn', 'lens', 'ratio', 'away', 'pixels', 'step_']) this.#at[name] = gl.getUniformLocation(program, name);
    for (const [name, kind, size] of [['place', gl.FLOAT, 4], ['colour', gl.UNSIGNED_BYTE, 3]]) {
      this.#buffers[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name]);
      const place = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, kind, kind === gl.UNSIGNED_BYTE, 0, 0);
    }
    gl.enable(gl.DEPTH_TEST);
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener('webglcontextlost', (event) => event.preventDefault());
  }

  get points() {
    return this.#count;
  }

  /** Take a result: {frame, values, height, width, kind, lo, hi}, and its camera's field of view where it is known. */
  take({ frame, values, height, width, kind, lo, hi, fov }) {
    const every = Math.max(1, Math.ceil(Math.sqrt((width * height) / MOST_POINTS)));
    const [columns, rows] = [Math.floor(width / every), Math.floor(height / every)];
    const small = document.createElement('canvas');
    [small.width, small.height] = [columns, rows];
    const surface = small.getContext('2d', { willReadFrequently: true });
    surface.imageSmoothingQuality = 'high';
    surface.drawImage(frame, 0, 0, columns, rows);
    const pixels = surface.getImageData(0, 0, columns, rows).data;
    const far = distances(values, kind, lo, hi);
    const wide = Math.tan(((fov ?? USUAL_ANGLE) * Math.PI) / 360);
    const high = (wide * frame.height) / frame.width;
    const step = (2 * wide) / columns;
    const places = new Float32Array(4 * columns * rows);
    const colours = new Uint8Array(3 * columns * rows);
    let count = 0;
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const here = (row * every + (every >> 1)) * width + column * every + (every >> 1);
        const z = far[here];
        const wider = z > 0 ? Math.max(reach(far, here, every, step), reach(far, here, every * width, step)) : TORN;
        if (!(wider < TORN)) continue;
        places[4 * count] = z * wide * ((2 * (column + 0.5)) / columns - 1);
        places[4 * count + 1] = z * high * ((2 * (row + 0.5)) / rows - 1);
        places[4 * count + 2] = z;
        places[4 * count + 3] = Math.min(wider, LARGEST);
        const from = 4 * (row * columns + column);
        for (let band = 0; band < 3; band++) colours[3 * count + band] = pixels[from + band];
        count++;
      }
    }
    this.#count = count;
    this.#step = step;
    this.wide = wide;
    this.high = high;
    const gl = this.#gl;
    for (const [name, data, size] of [['place', places, 4], ['colour', colours, 3]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name]);
      gl.bufferData(gl.ARRAY_BUFFER, data.subarray(0, size * count), gl.DYNAMIC_DRAW);
    }
    this.draw();
  }

  /** Turn to a pose: yaw and pitch in radians about the scene's middle, distance to it in medians. */
  turn(pose) {
    this.#pose = pose;
    this.draw();
  }

  /** Draw before the next repaint. */
  draw() {
    if (this.#queued) return;
    this.#queued = true;
    requestAnimationFrame(() => {
      this.#queued = false;
      this.#render();
    });
  }

  #render() {
    const { canvas } = this;
    const gl = this.#gl;
    const scale = Math.min(devicePixelRatio || 1, 2);
    const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!this.#count) return;
    const { yaw, pitch, away } = this.#pose;
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    gl.uniformMatrix3fv(this.#at.turn, false, [cy, sp * sy, -cp * sy, 0, cp, sp, sy, -sp * cy, cp * cy]);
    const ratio = width / height;
    gl.uniform1f(this.#at.lens, 0.96 * Math.min(1 / this.high, ratio / this.wide));
    gl.uniform1f(this.#at.ratio, ratio);
    gl.uniform1f(this.#at.away, away);
    gl.uniform1f(this.#at.pixels, height / 2);
    gl.uniform1f(this.#at.step_, this.#step);
    gl.drawArrays(gl.POINTS, 0, this.#count);
  }
}
