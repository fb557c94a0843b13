// What the page of a bundle and the page of `leadline serve` do alike: dropped files, saving, faults, frames a second.

import { Fault } from './contract.js';

const RATE_OVER_MS = 2000;

/** Hand a dropped file to `onFile`; `onOther` is called for what is no file. `stage` shows that it would be taken. */
export function acceptDrops(stage, onFile, onOther) {
  addEventListener('dragover', (event) => {
    event.preventDefault();
    stage.classList.add('dropping');
  });
  addEventListener('dragleave', () => stage.classList.remove('dropping'));
  addEventListener('drop', (event) => {
    event.preventDefault();
    stage.classList.remove('dropping');
    const file = event.dataTransfer.files[0];
    if (file) onFile(file);
    else onOther();
  });
}

/** Have the browser save a blob. */
export function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** An error in words for people. */
export function inWords(error) {
  return error instanceof Fault ? error.message : `Something went wrong: ${error.message ?? error}`;
}

/** Counts frames. */
export class Rate {
  #times = [];

  restart() {
    this.#times = [];
  }

  /** Count one frame; returns frames a second over the last two seconds, null where this is the only one. */
  count() {
    const now = performance.now();
    this.#times = [...this.#times.filter((time) => now - time < RATE_OVER_MS), now];
    return this.#times.length < 2 ? null : ((this.#times.length - 1) * 1000) / (now - this.#times[0]);
  }
}
