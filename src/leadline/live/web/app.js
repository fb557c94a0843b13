// The page: sources and settings on one side, the server on the other.

import { Fault } from './contract.js';
import { displayRange } from './colors.js';
import { colourMaps } from './maps.js';
import { Rate, acceptDrops, download, inWords } from './page.js';
import { Relief, shapeNote } from './relief.js';
import { NeedsToken, Stream, depth, models, palette, readNpy, takeToken, token } from './server.js';
import { openCamera, openFile, watch } from './source.js';
import { connect, show, shown, useMap, view, worded } from './stage.js';
import { turnable } from './turning.js';

const at = (id) => document.getElementById(id);
const SHOWN_SIDE = 1280; // longer side of what is shown of a picture, pixels; saved values have the picture's own
const FRAME_SIDE = 640; // of a film's frames, before they go to the network

let server = null; // as /v1/models says
let source = null; // {picture, file} or {video, stop, stream}, with its name
let stream = null;
let relief = null;
const rate = new Rate();

async function start() {
  takeToken();
  connect();
  at('file').onchange = () => at('file').files[0] && use(() => fromFile(at('file').files[0]));
  at('camera').onclick = () => (source?.stream ? leave() : use(fromCamera));
  at('play').onclick = () => (source.video.paused ? source.video.play() : source.video.pause());
  at('seek').oninput = () => (source.video.currentTime = Number(at('seek').value));
  at('model').onchange = () => guarded(() => (offerRuntimes(), again()));
  at('runtime').onchange = at('angle').onchange = at('steady').onchange = () => guarded(again);
  at('views').onchange = (event) => guarded(() => choose(event.target.value));
  at('ask-token').onsubmit = (event) => {
    event.preventDefault();
    token.set(at('token').value);
    guarded(load);
  };
  for (const format of ['npy', 'png16', 'color']) at(`save-${format}`).onclick = () => guarded(() => save(format));
  const drop = (file) => use(() => fromFile(file));
  acceptDrops(at('stage'), drop, () => tell('That was no file: drop a picture or a film.', true));
  await load();
}

async function load() {
  const [found, own] = await Promise.all([models(), palette()]);
  at('ask-token').hidden = true;
  server = found;
  at('model').replaceChildren(...server.models.map(({ name }) => new Option(name, name)));
  offerRuntimes();
  const maps = colourMaps(own);
  at('colours').replaceChildren(...Object.keys(maps).map((name) => new Option(name, name)));
  at('colours').onchange = () => useMap(maps[at('colours').value]);
  useMap(own);
  tell('');
}

const model = () => server.models.find(({ name }) => name === at('model').value);

function offerRuntimes() {
  const { runtimes, kind, corrects_for_camera: corrects } = model();
  at('runtime').replaceChildren(...runtimes.map((each) => new Option(`${each.runtime}, ${each.precision}`, each.runtime)));
  at('runtime').disabled = runtimes.length < 2;
  at('model').disabled = server.models.length < 2;
  at('angle-label').hidden = !corrects;
  at('about').textContent = `Depth from a single picture: ${worded(kind)}`;
}

function angle() {
  const degrees = at('angle').valueAsNumber;
  return degrees >= 2 && degrees <= 170 ? degrees : null;
}

const query = () => ({ model: at('model').value, runtime: at('runtime').value, fov: model().corrects_for_camera ? angle() : null });

/** Say something; a fault is read out at once. */
function tell(text, isFault = false) {
  const place = at('message');
  place.setAttribute('role', isFault ? 'alert' : 'status');
  place.classList.toggle('fault', isFault);
  place.textContent = text;
}

/** Change the source: what was there before is let go once the new one is open; a fault leaves it as it was. */
function use(open) {
  return guarded(async () => {
    if (!server) throw new Fault('The server has not told its models yet.');
    const opened = await open();
    leave();
    source = opened;
    at('camera').setAttribute('aria-pressed', String(Boolean(source.stream)));
    at('play').hidden = at('seek-label').hidden = !source.video || Boolean(source.stream);
    at('steady-label').hidden = !source.video;
    tell(`${source.name}…`);
    await again();
    if (source === opened && opened.video) follow(opened);
  });
}

function leave() {
  stream?.close();
  source?.stop?.();
  source?.video?.pause();
  source?.stream?.getTracks().forEach((track) => track.stop());
  source?.picture?.close();
  if (source?.video?.src) URL.revokeObjectURL(source.video.src);
  source = stream = null;
  at('camera').setAttribute('aria-pressed', 'false');
  at('play').hidden = at('seek-label').hidden = at('steady-label').hidden = true;
}

async function fromFile(file) {
  at('file').value = ''; // so that the same file can be chosen again
  tell(`Opening ${file.name}…`);
  return { ...(await openFile(file)), file, name: file.name };
}

async function fromCamera() {
  tell('Waiting for the camera…');
  const { video, stream: camera } = await openCamera();
  camera.getVideoTracks()[0].onended = () => {
    if (source?.stream !== camera) return;
    leave();
    tell('The camera stopped: it was unplugged, or another program took it.', true);
  };
  return { video, stream: camera, name: 'Webcam' };
}

/** Depth of what is open, with the present settings. */
async function again() {
  rate.restart();
  if (source?.picture) await ofPicture(source);
  else if (source) {
    openStream(source);
    await stream.send(grab(source.video, FRAME_SIDE));
  }
}

/** A copy of a picture or of a video's present frame, no larger than `side`. */
function grab(from, side) {
  const [width, height] = [from.videoWidth ?? from.width, from.videoHeight ?? from.height];
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [Math.max(1, Math.round(scale * width)), Math.max(1, Math.round(scale * height))];
  const surface = canvas.getContext('2d');
  surface.fillStyle = '#fff'; // as the server lays transparency over white
  surface.fillRect(0, 0, canvas.width, canvas.height);
  surface.imageSmoothingQuality = 'high';
  surface.drawImage(from, 0, 0, canvas.width, canvas.height);
  return canvas;
}

const asBlob = (canvas, type, quality) => new Promise((resolve) => canvas.toBlob(resolve, type, quality));

/** What is sent of a picture: the file itself, or where the server would refuse it, a smaller one. */
async function upload(mine) {
  const { width, height } = mine.picture;
  const { pixels, upload_bytes: bytes } = server.limits;
  if (width * height <= pixels && mine.file.size <= bytes) return [mine.file, ''];
  const side = Math.max(width, height) * Math.min(0.5, Math.sqrt(pixels / (width * height)));
  return [await asBlob(grab(mine.picture, Math.floor(side)), 'image/jpeg', 0.92), ' (sent smaller, the server’s limit)'];
}

async function ofPicture(mine) {
  const [body, note] = await upload(mine);
  const answer = await depth(body, 'npy', { ...query(), max_side: SHOWN_SIDE });
  const map = await readNpy(answer.body);
  if (source !== mine) return; // another one was opened meanwhile
  const kind = answer.headers.get('Depth-Kind');
  const [lo, hi] = displayRange(map.values, kind);
  const [camera, fov] = [answer.headers.get('Depth-Camera'), Number(answer.headers.get('Depth-Fov')) || null];
  present({ frame: grab(mine.picture, SHOWN_SIDE), ...map, kind, lo, hi, camera, fov });
  numbers(answer.ms, null);
  tell(`${mine.name}${note}`);
}

function openStream(mine) {
  stream?.close();
  stream = new Stream(
    { ...query(), smooth: at('steady').checked },
    (facts, values, frame, trip) =>
      guarded(() => {
        if (source !== mine) return;
        const { height, width, kind, lo, hi, camera, fov } = facts;
        present({ frame, values, height, width, kind, lo, hi, camera, fov });
        numbers({ network: facts.ms.network, server: facts.ms.total, trip }, rate.count());
      }),
    (reason) => {
      if (source !== mine) return;
      leave();
      tell(reason, true);
    },
  );
}

/** Run a video: each frame for which there is room. */
function follow(mine) {
  const { video } = mine;
  tell(mine.name);
  mine.stop = watch(video, () => guarded(async () => source === mine && stream?.send(grab(video, FRAME_SIDE))));
  if (mine.stream) return;
  at('seek').max = Number.isFinite(video.duration) ? video.duration : 0;
  video.ontimeupdate = () => (at('seek').value = video.currentTime);
  video.onseeked = () => video.paused && guarded(() => stream?.send(grab(video, FRAME_SIDE)));
  video.onplay = video.onpause = () => (at('play').textContent = video.paused ? 'Play' : 'Pause');
  video.onended = () => (at('play').textContent = 'Play again');
  video.onerror = () => tell(`${mine.name} is damaged after ${video.currentTime.toFixed(1)} s.`, true);
  video.play().catch(() => tell(`${mine.name}: press Play.`));
}

function present(result) {
  show(result);
  at('views').disabled = false;
  at('settings').hidden = at('numbers').hidden = false;
  at('size').textContent = `${result.width} × ${result.height}`;
  choose(at('stage').dataset.view);
}

/** Choose a view. */
function choose(name) {
  view(name);
  if (name !== 'space' || !shown().values) return;
  try {
    relief ??= new Relief(at('space'));
  } catch (error) {
    at('view-beside').checked = true;
    view('beside');
    throw error;
  }
  relief.reset ??= turnable(at('space'), (pose) => relief.turn(pose));
  relief.take(shown());
  const keys = 'Drag or use the arrow keys to turn, wheel or + and − to come closer, 0 to go back.';
  at('space-note').textContent = `${shapeNote(shown())} ${keys}`;
  at('space').dataset.points = relief.points;
}

function numbers(ms, frames) {
  const worded_ = (value) => (value === undefined ? '–' : `${value.toFixed(value < 10 ? 1 : 0)} ms`);
  at('ms-network').textContent = worded_(ms.network);
  at('ms-server').textContent = worded_(ms.server);
  at('ms-trip').textContent = worded_(ms.trip);
  at('rate').textContent = frames === null ? '–' : frames.toFixed(1);
}

/** Save what is shown: colours as they are, values as the server gives them at the picture's own size. */
async function save(format) {
  const stem = (source?.name ?? 'depth').replace(/\.[^.]*$/, '');
  if (format === 'color') {
    download(await asBlob(at('depth'), 'image/png'), `${stem}_color.png`);
    return;
  }
  const [body] = source?.picture ? await upload(source) : [await asBlob(shown().frame, 'image/png')];
  const { body: found, headers } = await depth(body, format, query());
  download(found, `${stem}${format === 'npy' ? '.npy' : '_depth.png'}`);
  const [scale, offset] = [headers.get('Depth-Scale'), headers.get('Depth-Offset')];
  const formula = scale ? `: value = ${scale} × code + ${offset}; code 0 has no value` : '';
  tell(`Saved ${worded(headers.get('Depth-Kind'))}${formula}.`);
}

/** Do it, and tell a fault in words; the page goes on. */
async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (error instanceof NeedsToken) {
      at('ask-token').hidden = false;
      at('token').focus();
    }
    tell(inWords(error), true);
  }
}

guarded(start);
