// What the server offers: its models, depth of a picture, and a stream of frames.

import { Fault } from './contract.js';

const KEY = 'leadline-token';

/** The token, which came behind # in the address or was typed in; it is kept as long as the tab lives. */
export const token = {
  get: () => sessionStorage.getItem(KEY) ?? '',
  set: (text) => sessionStorage.setItem(KEY, text),
};

export class NeedsToken extends Fault {}

/** Take the token out of the address, so that it is in no history. */
export function takeToken() {
  const [, packed] = location.hash.match(/^#token=([\w-]+)$/) ?? [];
  if (!packed) return;
  token.set(new TextDecoder().decode(Uint8Array.from(atob(packed.replaceAll('-', '+').replaceAll('_', '/')), (c) => c.charCodeAt(0))));
  history.replaceState(null, '', location.pathname);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Fault('The server does not answer. Is it still running?');
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  throw response.status === 401 ? new NeedsToken(error) : new Fault(error);
}

/** Models, their engines and the limits of a request. */
export const models = async () => (await ask('/v1/models')).json();

export const palette = async () => (await ask('/assets/palette.json')).json();

/** Depth of a picture in a format; `query` holds model, runtime, fov and max_side. */
export async function depth(picture, format, query) {
  const path = `/v1/depth?${parameters({ ...query, format })}`;
  const begun = performance.now();
  const response = await ask(path, {
    method: 'POST',
    body: picture,
    headers: { 'Content-Type': picture.type.startsWith('image/') ? picture.type : 'application/octet-stream' },
  });
  const body = await response.blob();
  return { body, headers: response.headers, ms: { ...timings(response), trip: performance.now() - begun } };
}

/** Milliseconds by the server's own clock: {network, server}. */
function timings(response) {
  const parts = Object.fromEntries(
    [...(response.headers.get('Server-Timing') ?? '').matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]),
  );
  return { network: parts.network, server: parts.before + parts.wait + parts.network + parts.after };
}

function parameters(query) {
  const known = Object.entries(query).filter(([, value]) => value !== null && value !== '' && value !== undefined);
  return new URLSearchParams(known.map(([name, value]) => [name, String(value)]));
}

/** A map in NumPy's format: {values, height, width}. */
export async function readNpy(blob) {
  const buffer = await blob.arrayBuffer();
  const start = 10 + new DataView(buffer).getUint16(8, true);
  const head = new TextDecoder().decode(buffer.slice(10, start));
  const [, height, width] = head.match(/'descr': '<f4'.*'shape': \((\d+), (\d+)\)/) ?? [];
  if (!height) throw new Fault('The server sent no map of float32.');
  return { values: new Float32Array(buffer.slice(start)), height: Number(height), width: Number(width) };
}

/** Frames to the server and maps back; at most `WINDOW` frames are under way. */
const WINDOW = 2;

export class Stream {
  #socket;
  #sent = new Map(); // by number: [frame, time]
  #count = 0;
  #wake = () => {};
  #opened;

  /** `onMap(facts, values, frame, trip)` takes each map, `onEnd(text)` the end. */
  constructor(query, onMap, onEnd) {
    const protocols = ['leadline'];
    if (token.get()) {
      const packed = btoa(String.fromCharCode(...new TextEncoder().encode(token.get())));
      protocols.push(`bearer.${packed.replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '')}`);
    }
    const address = new URL(`/v1/stream?${parameters({ ...query, format: 'raw' })}`, location.href);
    address.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
    this.#socket = new WebSocket(address, protocols);
    this.#socket.binaryType = 'arraybuffer';
    let reason = 'The stream to the server ended.';
    this.#opened = new Promise((resolve) => {
      this.#socket.onopen = () => resolve(true);
      this.#socket.onclose = () => {
        resolve(false);
        this.#wake();
        onEnd(reason);
      };
    });
    this.#socket.onmessage = ({ data }) => {
      if (typeof data === 'string') {
        const said = JSON.parse(data);
        reason = said.error;
        if ('frame' in said) this.#done(said.frame);
        return;
      }
      const length = new DataView(data).getUint32(0, true);
      const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
      const [frame, time] = this.#done(facts.frame);
      onMap(facts, new Float32Array(data.slice(4 + length)), frame, performance.now() - time);
    };
  }

  #done(number) {
    const found = this.#sent.get(number);
    for (const each of this.#sent.keys()) if (each <= number) this.#sent.delete(each); // older ones were dropped
    this.#wake();
    return found;
  }

  /** Send a frame (a canvas, which is kept until its map comes), and wait until there is room for another. */
  async send(frame) {
    if (!(await this.#opened)) return;
    const blob = await new Promise((resolve) => frame.toBlob(resolve, 'image/jpeg', 0.85));
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#sent.set(this.#count++, [frame, performance.now()]);
    this.#socket.send(blob);
    while (this.#sent.size >= WINDOW && this.#socket.readyState === WebSocket.OPEN) {
      await new Promise((resolve) => (this.#wake = resolve));
    }
  }

  close() {
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
    this.#wake();
  }
}
