const MARK = '\u001e';
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt()).buffer;
const escaped = (text) => (text[0] === MARK ? MARK + text : text);

/**
 * An event stream in the place of a WebSocket, for `connect(url, { fallback: EventStream })`: it says what a server of `pushring.1`
 * would say. The browser comes back by itself, and the server sends what was missed.
 */
export class EventStream {
  #url;
  #topics;
  #source;
  // It gives way to one with other topics.
  #leaving;
  #channel = null;
  // Messages go up one after another.
  #ups = Promise.resolve();
  // Numbers of orders without an answer.
  #asked = new Set();

  constructor(url, _protocols, topics = []) {
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace('ws', 'http');
    this.#topics = new Set(topics);
    // Who made this sets its handlers first.
    queueMicrotask(() => this.#open());
  }

  get readyState() {
    return this.#source ? this.#source.readyState : 0;
  }

  #open() {
    const url = new URL(this.#url);
    for (const topic of this.#topics) url.searchParams.append('topic', topic);
    if (this.#topics.size) url.searchParams.append('envelope', '1');
    const source = new EventSource(url, { withCredentials: true });
    this.#source = source;
    const on = (name, how) => source.addEventListener(name, ({ data }) => source === this.#source && how(data));
    const hear = (data) => this.onmessage({ data });
    on('channel', (data) => {
      const { channel_id, token } = JSON.parse(data);
      const isFirst = !this.#channel;
      this.#channel = `${channel_id}.${token}`;
      if (isFirst) hear(JSON.stringify({ pushring: 1, channel_id }));
      // Answers to what the one before was asked for went with it.
      else for (const id of this.#asked) this.#lost(id);
    });
    on('message', (data) => hear(escaped(data)));
    on('text', (data) => hear(escaped(new TextDecoder().decode(bytes(data)))));
    on('binary', (data) => hear(bytes(data)));
    on('gap', (data) => hear(`${MARK}{"gap":${JSON.stringify(JSON.parse(data).reason)}}`));
    on('control', (data) => {
      this.#asked.delete(JSON.parse(data).id);
      hear(MARK + data);
    });
    on('close', (data) => {
      this.#source = null;
      source.close();
      this.onclose(JSON.parse(data));
    });
    source.onerror = () => {
      // Refused: no browser comes back by itself then.
      if (source === this.#source && source.readyState === 2) this.onclose({ code: 1006, reason: '' });
    };
  }

  send(data) {
    if (typeof data === 'string' && data[0] === MARK && data[1] !== MARK) {
      const { ack, ping, subscribe, unsubscribe, id } = JSON.parse(data.slice(1));
      if (ack !== undefined) return;
      if (ping !== undefined) return (this.#ups = this.#ups.then(() => this.#say(data, null)));
      if (subscribe) return this.#change(this.#topics.has(subscribe) || !this.#topics.add(subscribe), { subscribed: subscribe, id });
      if (unsubscribe) return this.#change(!this.#topics.delete(unsubscribe), { unsubscribed: unsubscribe, id });
      this.#asked.add(id);
      this.#ups = this.#ups.then(() => this.#say(data, id));
      return;
    }
    this.#ups = this.#ups.then(() => this.#say(data));
  }

  /** Topics stand in the URL, so with others it is another stream: one, however many change at a time. */
  #change(isSame, answer) {
    const source = this.#source;
    if (!isSame && this.#leaving !== source) {
      this.#leaving = source;
      queueMicrotask(() => {
        if (source !== this.#source) return;
        source.close();
        this.#open();
        this.onmessage({ data: `${MARK}{"gap":"closed"}` });
      });
    }
    this.onmessage({ data: MARK + JSON.stringify(answer) });
  }

  /** Nobody knows whether it was executed. */
  #lost(id) {
    if (this.#asked.delete(id)) this.onmessage({ data: `${MARK}{"error":"lost","id":${id}}` });
  }

  async #say(body, id) {
    const type = typeof body === 'string' ? 'text/plain' : 'application/octet-stream';
    const headers = { 'sse-channel': this.#channel, 'content-type': type };
    try {
      const { ok } = await fetch(this.#url, { method: 'POST', credentials: 'include', headers, body });
      if (ok) return;
    } catch {
      // As good as refused.
    }
    if (id === undefined) this.onmessage({ data: `${MARK}{"unsent":1}` });
    else this.#lost(id);
  }

  close() {
    this.#source?.close();
    this.#source = null;
  }
}
