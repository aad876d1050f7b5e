/** Codes after which the same client would be refused again; the table is in docs/PROTOCOL.md. */
const FINAL = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1010, 4400, 4403, 4501]);
const MARK = '\u001e';
const ACK_EVERY = 64;

const sizeOf = (data) => (typeof data === 'string' ? data.length * 3 : (data.byteLength ?? data.size));

/** Opens a channel that goes on after sleep, network changes and lost connections. See `index.d.ts`. */
export function connect(url, options = {}) {
  return new Channel(url, options);
}

export class Channel {
  #url;
  #options;
  #socket = null;
  #timer;
  #attempt = 0;
  #id = null;
  #token = null;
  #received = 0;
  #acknowledged = 0;
  // What the server may not have: `#first` is the number of the oldest.
  #outbox = [];
  #outboxBytes = 0;
  #first = 0;
  // How many of the outbox were written to a connection of this channel.
  #written = 0;
  #isOpen = false;
  #isClosed = false;

  constructor(url, options) {
    this.#url = url;
    this.#options = {
      baseMs: 500,
      capMs: 30_000,
      helloMs: 10_000,
      ackMs: 5_000,
      outboxMessagesMax: 1_000,
      outboxBytesMax: 1 << 20,
      random: Math.random,
      WebSocket: globalThis.WebSocket,
      ...options,
    };
    this.#listen('addEventListener');
    this.#open();
  }

  /** The channel's number, once the server has said it. */
  get id() {
    return this.#id;
  }

  /** Whether messages go out at once. */
  get isOpen() {
    return this.#isOpen;
  }

  /** Sends a message now, or as soon as there is a connection. False: the outbox is full, and nothing was sent. */
  send(data) {
    const bytes = sizeOf(data);
    const { outboxMessagesMax, outboxBytesMax } = this.#options;
    if (this.#isClosed) return false;
    // What was written makes room: that it has come is likely, and said when it has not.
    while (this.#written > 0 && (this.#outbox.length >= outboxMessagesMax || this.#outboxBytes + bytes > outboxBytesMax)) {
      this.#forget(1);
    }
    if (this.#outbox.length >= outboxMessagesMax || this.#outboxBytes + bytes > outboxBytesMax) return false;
    this.#outbox.push(data);
    this.#outboxBytes += bytes;
    if (this.#isOpen) this.#flush();
    return true;
  }

  /** Ends the channel for good. */
  close(code = 1000, reason = '') {
    this.#socket?.close(code, reason);
    this.#end(code, reason);
  }

  #listen(how) {
    globalThis[how]?.('online', this.#online);
    globalThis[how]?.('offline', this.#offline);
  }

  #online = () => {
    if (!this.#socket) this.#open();
  };

  // A close frame would end the channel: the old connection is left as it is, and taken over by the next.
  #offline = () => this.#lost();

  #open() {
    clearTimeout(this.#timer);
    if (this.#isClosed) return;
    const { protocols = [], WebSocket: Socket, helloMs } = this.#options;
    const offered = ['pushring.1', ...(typeof protocols === 'function' ? protocols() : protocols)];
    if (this.#token) offered.push(`resume.${this.#id}.${this.#token}.${this.#received}`);
    const socket = new Socket(typeof this.#url === 'function' ? this.#url() : this.#url, offered);
    socket.binaryType = 'arraybuffer';
    this.#socket = socket;
    const isCurrent = () => socket === this.#socket;
    socket.onmessage = ({ data }) => isCurrent() && this.#heard(data);
    socket.onclose = ({ code, reason }) => isCurrent() && this.#closed(code, reason);
    this.#timer = setTimeout(() => isCurrent() && this.#lost(), helloMs);
  }

  #heard(data) {
    if (!this.#isOpen) return this.#greeted(JSON.parse(data));
    if (typeof data === 'string' && data[0] === MARK) {
      data = data.slice(1);
      if (data[0] !== MARK) {
        const { dropped } = JSON.parse(data);
        if (dropped) this.#missed(dropped, 'dropped');
        return;
      }
    }
    this.#received++;
    this.#acknowledge(this.#received - this.#acknowledged >= ACK_EVERY);
    this.#options.onMessage?.(data);
  }

  #greeted({ channel_id, resume, resumed, received, reason, lost }) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const isSame = received !== undefined;
    const wasKnown = this.#id !== null;
    [this.#id, this.#token, this.#attempt, this.#isOpen] = [channel_id, resume, 0, true];
    if (isSame) {
      const unsent = this.#first - received;
      if (unsent > 0) this.#options.onLost?.(unsent);
      this.#forget(Math.max(0, -unsent));
      this.#first = received;
      this.#written = 0;
      if (!resumed) this.#missed(lost, reason);
    } else {
      // Nobody knows what of this the old channel has heard.
      if (this.#written) this.#options.onLost?.(this.#written);
      this.#forget(this.#written);
      [this.#first, this.#received, this.#acknowledged] = [0, 0, 0];
      if (wasKnown) this.#options.onGap?.(lost ?? null, reason ?? 'closed');
    }
    this.#options.onOpen?.({ id: channel_id, resumed: isSame });
    this.#flush();
  }

  #missed(count, reason) {
    this.#received += count;
    this.#options.onGap?.(count, reason);
  }

  #acknowledge(isDue) {
    if (isDue) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#acknowledged = this.#received;
      this.#socket.send(`${MARK}{"ack":${this.#received}}`);
    } else {
      this.#timer ??= setTimeout(() => this.#isOpen && this.#acknowledge(true), this.#options.ackMs);
    }
  }

  #flush() {
    while (this.#isOpen && this.#written < this.#outbox.length) {
      const data = this.#outbox[this.#written++];
      this.#socket.send(typeof data === 'string' && data[0] === MARK ? MARK + data : data);
    }
  }

  #forget(count) {
    for (const data of this.#outbox.splice(0, count)) {
      this.#outboxBytes -= sizeOf(data);
      this.#first++;
      this.#written = Math.max(0, this.#written - 1);
    }
  }

  #lost(waitMs) {
    if (this.#isClosed) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    [this.#socket, this.#isOpen] = [null, false];
    const { baseMs, capMs, random } = this.#options;
    // Full jitter: those that were lost together do not come back together.
    waitMs ??= random() * Math.min(capMs, baseMs * 2 ** this.#attempt++);
    this.#timer = setTimeout(() => this.#open(), waitMs);
    this.#options.onRetry?.(waitMs);
  }

  async #closed(code, reason) {
    const wasOpen = this.#isOpen;
    this.#isOpen = false;
    if (code !== 1006) {
      // A close frame ends the channel; the next one is new.
      this.#token = null;
      if (code === 4401) {
        if (!(await this.#options.onUnauthorized?.())) return this.#end(code, reason);
      } else if (FINAL.has(code) || (code >= 3000 && ![4404, 4408].includes(code))) {
        return this.#end(code, reason);
      }
    }
    let waitMs;
    if (code === 1012) {
      try {
        waitMs = JSON.parse(reason).retry_ms;
      } catch {
        // In words: after a pause like any other.
      }
    }
    if (wasOpen) this.#options.onDown?.(code, reason);
    this.#lost(waitMs);
  }

  #end(code, reason) {
    if (this.#isClosed) return;
    clearTimeout(this.#timer);
    this.#listen('removeEventListener');
    [this.#isClosed, this.#isOpen, this.#socket] = [true, false, null];
    this.#options.onClose?.(code, reason);
  }
}
