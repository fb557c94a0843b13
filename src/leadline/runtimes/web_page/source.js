// Where frames come from: a picture, a video file, or the camera.

import { Fault } from './contract.js';

const MAX_PIXELS = 80_000_000; // as leadline.image has it
const GRANTED_IN_MS = 60_000;
const canvas = document.createElement('canvas');
const surface = canvas.getContext('2d', { willReadFrequently: true });

/** The frame that was grabbed last, for showing beside its depth. */
export const grabbed = canvas;

/** Pixels of a picture or of a video's present frame: {data, height, width}, transparency laid over white. */
export function grab(source) {
  const width = source.videoWidth ?? source.width;
  const height = source.videoHeight ?? source.height;
  [canvas.width, canvas.height] = [width, height];
  surface.fillStyle = '#fff';
  surface.fillRect(0, 0, width, height);
  surface.drawImage(source, 0, 0);
  try {
    return surface.getImageData(0, 0, width, height);
  } catch {
    throw new Fault(`This browser cannot read a picture of ${width} x ${height} pixels: make it smaller.`);
  }
}

/** A file as {picture} or {video}; it is told from the content, not from its name. */
export async function openFile(file) {
  if (file.size === 0) throw new Fault(`${file.name} is empty (0 bytes).`);
  const url = URL.createObjectURL(file);
  if (!file.type.startsWith('video/') && (await sized(url, file.name))) return { picture: await decoded(file) };
  const video = await playable(url);
  if (video) return { video };
  URL.revokeObjectURL(url);
  throw new Fault(`${file.name} is no picture or video that this browser can read: try PNG, JPEG, WebM or MP4.`);
}

/** Whether it is a picture by its header; too large ones are refused before they are decoded. */
async function sized(url, name) {
  const image = new Image();
  const found = await new Promise((resolve) => {
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
    image.src = url;
  });
  const { naturalWidth: width, naturalHeight: height } = image;
  image.src = '';
  if (width * height > MAX_PIXELS) {
    throw new Fault(`${name} is too large: ${width} x ${height}; at most ${MAX_PIXELS / 1e6} million pixels are read.`);
  }
  return found;
}

async function decoded(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none' });
  } catch {
    throw new Fault(`${file.name} cannot be read: it is damaged, or no picture of pixels. Save it as PNG or JPEG.`);
  }
}

async function playable(url) {
  const video = silent();
  video.src = url;
  const loaded = await new Promise((resolve) => {
    video.onloadeddata = () => resolve(true);
    video.onerror = () => resolve(false);
  });
  return loaded && video.videoWidth > 0 ? video : null;
}

/** The camera as a playing video. */
export async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Fault('The camera needs a safe address: https, or localhost.');
  }
  const wanted = { video: { facingMode: 'environment', width: { ideal: 640 }, height: { ideal: 480 } }, audio: false };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    throw new Fault(CAMERA_FAULTS[error.name] ?? `The camera cannot be used: ${error.message}`);
  }
  const video = silent();
  video.srcObject = stream;
  const late = new Promise((_, reject) => {
    setTimeout(() => reject(new Fault('The camera sends no pictures.')), GRANTED_IN_MS);
  });
  await Promise.race([video.play(), late]);
  return { video, stream };
}

const CAMERA_FAULTS = {
  NotAllowedError: 'The camera was not allowed: permit it for this page in the browser, then press Camera again.',
  NotFoundError: 'There is no camera on this machine.',
  NotReadableError: 'The camera is busy: close the program that uses it.',
};

function silent() {
  const video = document.createElement('video');
  video.muted = true;
  video.playsInline = true;
  return video;
}

/** Call `onFrame` for each new frame once the last call has ended; frames in between are skipped. Returns a stop. */
export function watch(video, onFrame) {
  let stopped = false;
  const later = (call) =>
    video.requestVideoFrameCallback ? video.requestVideoFrameCallback(call) : requestAnimationFrame(call);
  const step = async () => {
    let shown;
    do {
      if (stopped) return;
      shown = video.currentTime;
      await onFrame();
    } while (video.paused && video.currentTime !== shown); // the last frame came while the one before was computed
    if (!stopped) later(step);
  };
  if (video.paused) step();
  else later(step);
  return () => {
    stopped = true;
  };
}
