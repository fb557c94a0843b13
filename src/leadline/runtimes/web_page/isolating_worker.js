// A service worker that adds the isolating headers to the answers of a plain file server. It stores nothing.

const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('fetch', (event) => {
  if (new URL(event.request.url).origin === self.location.origin) event.respondWith(isolated(event.request));
});

async function isolated(request) {
  const response = await fetch(request);
  if (response.type === 'opaqueredirect') return response;
  let body = response.body;
  if (request.mode === 'navigate') {
    body = await response.text();
    if (response.ok && !body.includes('data-leadline-page')) {
      await self.registration.unregister(); // another page lives at this address now: leave it as it is
      return new Response(body, response);
    }
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(status === 204 || status === 304 ? null : body, { status, statusText, headers });
}
