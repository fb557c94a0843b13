// The page: settings and sources on one side, the engine on the other.

import { Fault, hasCamera } from './contract.js';
import { Engine } from './engine.js';
import { isolate } from './isolation.js';
import { Rate, acceptDrops, inWords } from './page.js';
import { grab, grabbed, openCamera, openFile, watch } from './source.js';
import { connect, describe, show, showNumbers, tell } from './view.js';

const at = (id) => document.getElementById(id);
const MOST_THREADS = 8;

let settings;
let engine = null;
let source = null; // {picture} or {video, stop, stream}, with its name
const rate = new Rate();
let computing = Promise.resolve();

async function start() {
  connect();
  tell('Loading the network…');
  const [network, contract] = await Promise.all([json('network.json'), json('contract.json')]);
  settings = { ...network, contract };
  describe(settings);
  if (await isolate()) return; // the page loads again, isolated
  offerThreads();
  await offerEngines();
  at('angle-label').hidden = at('angle-note').hidden = !hasCamera(contract);
  if (hasCamera(contract)) at('angle-note').textContent = cameraNote(contract.input.camera);
  at('file').onchange = () => at('file').files[0] && use(() => fromFile(at('file').files[0]));
  at('camera').onclick = () => (source?.stream ? leave() : use(fromCamera));
  at('play').onclick = () => (source.video.paused ? source.video.play() : source.video.pause());
  at('seek').oninput = () => (source.video.currentTime = Number(at('seek').value));
  at('angle').onchange = at('angle').oninput = () => refresh();
  at('engine').onchange = at('threads').onchange = () => guarded(openEngine);
  const drop = (file) => use(() => fromFile(file));
  acceptDrops(at('stage'), drop, () => tell('That was no file: drop a picture or a video.', true));
  await openEngine();
}

async function json(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Fault(`The server has no ${name} (status ${response.status}): copy the whole folder.`);
  return response.json();
}

function cameraNote(camera) {
  const degrees = (360 / Math.PI) * Math.atan(0.5 / camera.fx_over_width);
  const seen = `${degrees.toFixed(0)}° from left to right`;
  return `Metres are right for a camera that sees ${seen}. Give yours if it differs: the photo’s own data is not read.`;
}

function offerThreads() {
  const most = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  for (let count = 1; count <= most; count++) at('threads').add(new Option(count, count));
  at('threads').value = Math.max(1, Math.ceil(most / 2));
  at('threads').disabled = most === 1;
  if (!globalThis.crossOriginIsolated) {
    at('note').textContent =
      'One thread only: the server does not isolate this page. Start it with “python serve.py”, or use https.';
  }
}

async function offerEngines() {
  let adapter = null;
  try {
    adapter = await navigator.gpu?.requestAdapter();
  } catch {
    adapter = null; // a browser without a working GPU says so in many ways
  }
  if (adapter) at('engine').add(new Option('WebGPU', 'webgpu'));
  else at('engine').title = 'This browser offers no WebGPU device.';
}

async function openEngine() {
  engine?.close();
  engine = null;
  const [kind, threads] = [at('engine').value, Number(at('threads').value)];
  at('runs-on').textContent = '–';
  tell('Loading the network…');
  const opened = new Engine();
  engine = opened;
  try {
    await opened.open(kind, threads, settings);
  } catch (error) {
    if (engine !== opened) return; // another choice was made meanwhile
    opened.close();
    engine = null;
    if (kind === 'wasm') throw error;
    at('engine').value = 'wasm';
    await openEngine();
    throw new Fault(`WebGPU cannot run this network (${error.message}). It runs on WebAssembly now.`);
  }
  if (engine !== opened) return;
  at('runs-on').textContent =
    kind === 'webgpu' ? 'WebGPU' : `WebAssembly, ${threads} thread${threads === 1 ? '' : 's'}`;
  tell('Ready.');
  rate.restart();
  await refresh();
}

/** Change the source: what was there before is let go, and a fault leaves the page usable. */
function use(open) {
  return guarded(async () => {
    leave();
    const opened = await open();
    leave(); // another one may have been opened while this one was waited for
    source = opened;
    rate.restart();
    at('camera').setAttribute('aria-pressed', String(Boolean(source.stream)));
    at('play').hidden = at('seek-label').hidden = !source.video || Boolean(source.stream);
    tell(source.name);
    if (source.video) follow(source);
    await refresh(true);
  });
}

function leave() {
  source?.stop?.();
  source?.video?.pause();
  source?.stream?.getTracks().forEach((track) => track.stop());
  source?.picture?.close();
  if (source?.video?.src) URL.revokeObjectURL(source.video.src);
  source = null;
  at('camera').setAttribute('aria-pressed', 'false');
  at('play').hidden = at('seek-label').hidden = true;
}

async function fromFile(file) {
  at('file').value = ''; // so that the same file can be chosen again
  tell(`Opening ${file.name}…`);
  return { ...(await openFile(file)), name: file.name };
}

async function fromCamera() {
  tell('Waiting for the camera…');
  const { video, stream } = await openCamera();
  stream.getVideoTracks()[0].onended = () => {
    if (source?.stream !== stream) return;
    leave();
    tell('The camera stopped: it was unplugged, or another program took it.', true);
  };
  return { video, stream, name: 'Camera' };
}

/** Run a video: each frame that comes when the engine is free. */
function follow(mine) {
  const { video } = mine;
  let first = true;
  mine.stop = watch(video, () => {
    const isNew = first;
    first = false;
    return guarded(() => compute(mine, isNew));
  });
  if (mine.stream) return;
  at('seek').max = Number.isFinite(video.duration) ? video.duration : 0;
  video.ontimeupdate = () => (at('seek').value = video.currentTime);
  video.onplay = video.onpause = () => (at('play').textContent = video.paused ? 'Play' : 'Pause');
  video.onended = () => (at('play').textContent = 'Play again');
  video.onerror = () => {
    tell(`${mine.name} is damaged after ${video.currentTime.toFixed(1)} s; shown is what could be read.`, true);
  };
  video.play().catch(() => tell(`${mine.name}: press Play.`));
}

/** Compute the present picture or frame again. */
function refresh(isNew = false) {
  const mine = source;
  return mine && (mine.picture || mine.video.paused) ? guarded(() => compute(mine, isNew)) : undefined;
}

/** One picture at a time: the next one waits for the last. */
function compute(mine, isNew) {
  const turn = computing.then(() => once(mine, isNew));
  computing = turn.catch(() => {}); // the caller hears of it
  return turn;
}

async function once(mine, isNew) {
  const running = engine;
  if (source !== mine || !running) return;
  const frame = grab(mine.picture ?? mine.video);
  const degrees = angle();
  let result;
  at('stage').setAttribute('aria-busy', String(Boolean(mine.picture)));
  try {
    result = await running.run(frame, { degrees, isNew: isNew || Boolean(mine.picture) });
  } catch (error) {
    if (running !== engine || source !== mine) return; // the engine or the source was changed meanwhile
    mine.video?.pause();
    throw error;
  } finally {
    at('stage').setAttribute('aria-busy', 'false');
  }
  if (source !== mine) return;
  show(grabbed, result, mine.name.replace(/\.[^.]*$/, '') || 'depth');
  showNumbers(result, mine.picture ? null : rate.count());
}

function angle() {
  const degrees = at('angle').valueAsNumber;
  return degrees >= 2 && degrees <= 170 ? degrees : null;
}

/** Do it, and tell a fault in words; the page goes on. */
async function guarded(work) {
  try {
    await work();
  } catch (error) {
    tell(inWords(error), true);
  }
}

guarded(start);
