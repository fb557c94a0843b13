// The page's end of worker.js.

import { Fault } from './contract.js';

/** A network that is loaded in a worker of its own and takes one picture at a time. */
export class Engine {
  #worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
  #waiting = new Map();
  #count = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { id, result, fault } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (fault === undefined) resolve(result);
      else reject(new Fault(fault));
    };
    this.#worker.onerror = (event) => this.#drop(`The engine stopped: ${event.message ?? 'its script did not load'}`);
  }

  /** Load the network. `engine` is wasm or webgpu; `settings` is network.json with the contract in it. */
  open(engine, threads, settings) {
    return this.#ask('open', { engine, threads, settings }, []);
  }

  /** Depth of a frame: {values, colors, lo, hi, ms, size}. The frame's pixels are given away. */
  run(frame, options) {
    const { data, height, width } = frame;
    return this.#ask('run', { rgba: data, height, width, now: performance.now(), ...options }, [data.buffer]);
  }

  close() {
    this.#worker.terminate();
    this.#drop('The engine was closed.');
  }

  #ask(call, options, transfer) {
    const id = this.#count++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, options }, transfer);
    });
  }

  #drop(message) {
    for (const { reject } of this.#waiting.values()) reject(new Fault(message));
    this.#waiting.clear();
  }
}
