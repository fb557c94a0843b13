// Off the page's own thread: a picture's pixels come in, its depth and colours go out.

import { SteadyRange, colorize, displayRange } from './colors.js';
import { Fault, prepare, restore } from './contract.js';

const BUILDS = {
  wasm: { script: './ort/ort.wasm.min.mjs', engine: 'ort-wasm-simd-threaded' },
  webgpu: { script: './ort/ort.webgpu.min.mjs', engine: 'ort-wasm-simd-threaded.asyncify' },
};

let network; // what `open` sent: contract, palette and so on
let ort;
let session;
const range = new SteadyRange();

async function open({ engine, threads, settings }) {
  network = settings;
  if (engine === 'webgpu' && !(await navigator.gpu?.requestAdapter())) throw new Fault('No WebGPU device here.');
  const build = BUILDS[engine];
  ort = await import(build.script);
  ort.env.logLevel = 'error';
  ort.env.wasm.numThreads = threads;
  const place = new URL(`./ort/${build.engine}`, import.meta.url).href;
  ort.env.wasm.wasmPaths = { mjs: `${place}.mjs`, wasm: `${place}.wasm` };
  const response = await fetch(new URL(network.file, import.meta.url));
  if (!response.ok) throw new Fault(`The server has no ${network.file} (status ${response.status}).`);
  session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()), {
    executionProviders: [engine],
    graphOptimizationLevel: 'all',
    extra: network.session,
  });
  const { height, width } = network.contract.input;
  await infer({ data: new Float32Array(3 * height * width), dims: [1, 3, height, width] }); // compiles, and may fail
}

async function infer({ data, dims }) {
  const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor('float32', data, dims) });
  const map = outputs[session.outputNames[0]];
  return { data: await map.getData(true), dims: map.dims };
}

async function run({ rgba, height, width, degrees, now, isNew }) {
  const { contract, palette } = network;
  const kind = contract.output.kind;
  const started = performance.now();
  const input = prepare(contract, rgba, height, width);
  const prepared = performance.now();
  const output = await infer(input);
  const inferred = performance.now();
  const values = restore(contract, output, height, width, degrees);
  if (isNew) range.reset();
  const [lo, hi] = range.follow(displayRange(values, kind), now);
  const colors = colorize(values, kind, lo, hi, palette);
  const ms = { before: prepared - started, network: inferred - prepared, after: performance.now() - inferred };
  return { values, colors, lo, hi, ms, size: input.dims.slice(2) };
}

self.onmessage = async ({ data: { id, call, options } }) => {
  try {
    const result = call === 'open' ? await open(options) : await run(options);
    self.postMessage({ id, result }, result ? [result.values.buffer, result.colors.buffer] : []);
  } catch (error) {
    const message = error instanceof Fault ? error.message : `The engine failed: ${String(error?.message ?? error)}`;
    self.postMessage({ id, fault: message });
  }
};
