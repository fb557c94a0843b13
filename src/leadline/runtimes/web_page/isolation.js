// Threads in WebAssembly need a page that is isolated from others by two headers (COOP and COEP). serve.py sends them;
// with servers that do not, a service worker adds them.

const TRIED = 'leadline-isolation-tried';
const PATIENCE_MS = 5000;

/** Isolate the page where that is possible. True: it is being loaded again, stop here. */
export async function isolate() {
  if (globalThis.crossOriginIsolated) {
    sessionStorage.removeItem(TRIED);
    return false;
  }
  if (!globalThis.isSecureContext || !navigator.serviceWorker || sessionStorage.getItem(TRIED)) return false;
  sessionStorage.setItem(TRIED, 'yes'); // once: a browser that cannot be isolated must not load for ever
  try {
    await navigator.serviceWorker.register('isolating_worker.js');
    const late = new Promise((_, reject) => setTimeout(reject, PATIENCE_MS));
    await Promise.race([navigator.serviceWorker.ready, late]);
  } catch {
    return false; // private windows and some settings forbid service workers; one thread works
  }
  location.reload();
  return true;
}
