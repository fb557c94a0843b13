"""The server: depth over HTTP and WebSocket, and the page that shows it."""
