// Sockets that are played by hand, and patience.

const PATIENCE_MS = 20_000;

/** The sockets that a client makes with `WebSocket`: what it is told is what a test says. */
export function played() {
  const sockets = [];
  class Played {
    constructor(url, protocols) {
      Object.assign(this, { url, protocols, sent: [] });
      sockets.push(this);
    }
    send(data) {
      this.sent.push(data);
    }
    close(code) {
      this.closedWith = code;
    }
    hello(fields) {
      this.onmessage({ data: JSON.stringify({ pushring: 1, channel_id: 7, resume: 't'.repeat(22), window_ms: 1, ...fields }) });
    }
  }
  return { sockets, WebSocket: Played };
}

export function until(condition) {
  const started = Date.now();
  return new Promise((resolve, reject) => {
    const look = () => {
      if (condition()) return resolve();
      if (Date.now() - started > PATIENCE_MS) return reject(new Error(`not in time: ${condition}`));
      setTimeout(look, 5);
    };
    look();
  });
}
