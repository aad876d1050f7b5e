// Those that it would get again, as all from 3000 on but `AGAIN`. 4401 is asked for.
const FINAL = [1000, 1002, 1003, 1007, 1008, 1009, 1010];
const AGAIN = [4404, 4408];
const MARK = '\u001e';

const sizeOf = (data) => data.byteLength ?? data.size ?? new TextEncoder().encode(data).length;
const valueOf = (value) => (typeof value === 'function' ? value() : value);
const begin = async (work) => work();
const parsed = (text) => {
  try {
    return JSON.parse(text);
  } catch {}
};

export const connect = (url, options = {}) => new Channel(url, options);

export class Channel {
  #url;
  #options;
  #socket;
  // Given up: a close frame would end their channel.
  #abandoned = [];
  #timer;
  #attempt = 0;
  #id;
  #token;
  #hasUpgraded = false;
  #received = 0;
  #acknowledged = 0;
  // What the server may not have; `#first` numbers the oldest.
  #outbox = [];
  #outboxBytes = 0;
  #first = 0;
  // How many of it were written to a connection of this channel.
  #written = 0;
  #isOpen = false;
  #isClosed = true;
  #topics = new Map();
  // Orders without an answer, by number.
  #asks = new Map();
  #ask = 0;
  // Answers of before that are still to come.
  #again = 0;
  // Whether control texts are spoken.
  #isMarked;
  // Beats without a message, and how many are borne.
  #silent = 0;
  #patience = 1;
  #beats;

  constructor(url, options) {
    this.#url = url;
    this.#options = {
      resume: !options.register,
      baseMs: 500,
      capMs: 30e3,
      helloMs: 10e3,
      ackMs: 5e3,
      beatMs: 15e3,
      outboxMessagesMax: 1e3,
      outboxBytesMax: 1 << 20,
      random: Math.random,
      WebSocket: globalThis.WebSocket,
    };
    for (const name in options) this.#options[name] = options[name] ?? this.#options[name];
    this.#open();
    this.#isClosed = false;
    this.#listen('addEventListener');
    this.#beats = setInterval(this.#beat, this.#options.beatMs);
  }

  get id() {
    return this.#id ?? null;
  }

  get isOpen() {
    return this.#isOpen;
  }

  send(data) {
    if (data.byteLength >= 0) data = new Uint8Array(data.buffer ?? data, data.byteOffset, data.byteLength).slice();
    const bytes = sizeOf(data);
    const { outboxMessagesMax, outboxBytesMax } = this.#options;
    const isFull = () => this.#outbox.length >= outboxMessagesMax || this.#outboxBytes + bytes > outboxBytesMax;
    // What was written makes room: it has likely come, and is told when it has not.
    while (this.#written && isFull()) this.#forget(1);
    if (this.#isClosed || isFull()) return false;
    this.#outbox.push(data);
    this.#outboxBytes += bytes;
    this.#flush();
    return true;
  }

  subscribe(topic, onMessage) {
    const mine = [onMessage];
    this.#topics.set(topic, mine);
    return this.#order({ subscribe: topic, envelope: true }).catch((error) => {
      if (this.#topics.get(topic) === mine) this.#topics.delete(topic);
      throw error;
    });
  }

  unsubscribe(topic) {
    this.#topics.delete(topic);
    return this.#order({ unsubscribe: topic });
  }

  publish(topic, data) {
    return this.#order({ publish: topic, [typeof data === 'string' ? 'text' : 'json']: data });
  }

  renew(token) {
    return this.#order({ renew: token });
  }

  close(code = 1000, reason = '') {
    this.#socket?.close(code, reason);
    this.#end(code, reason);
  }

  #listen(how) {
    globalThis[how]?.('online', this.#online);
    globalThis[how]?.('offline', this.#offline);
  }

  #online = () => {
    if (!this.#isOpen) this.#lost(0);
  };

  #offline = () => this.#lost();

  #failed = ({ message }) => void (this.#options.onError ?? console.error)(message);

  /** A dead connection to which nothing is written is only silent: so it is asked. */
  #beat = () => {
    if (!this.#isOpen || !this.#options.resume || !this.#silent++) return;
    if (this.#silent - 2 < this.#patience) return this.#socket.send(`${MARK}{"ping":0}`);
    // A large message may be on its way.
    if (this.#patience < 16) this.#patience *= 2;
    this.#lost(0);
  };

  #open() {
    const { protocols = [], register, resume, fallback, WebSocket, helloMs } = this.#options;
    // Also where this fails.
    this.#timer = setTimeout(() => this.#lost(), helloMs);
    const Socket = fallback && !this.#hasUpgraded && this.#attempt > 1 ? fallback : WebSocket;
    this.#isMarked = resume || Socket !== WebSocket;
    const offered = [...valueOf(protocols)];
    if (resume) offered.unshift('pushring.1');
    if (this.#token) offered.push(`resume.${this.#id}.${this.#token}.${this.#received}`);
    const socket = new Socket(valueOf(this.#url), offered, [...this.#topics.keys()]);
    socket.binaryType = 'arraybuffer';
    this.#socket = socket;
    const isCurrent = () => socket === this.#socket;
    socket.onopen = async () => {
      this.#hasUpgraded = true;
      const hello = register && (await begin(() => valueOf(register)).catch(this.#failed));
      if (!isCurrent()) return;
      if (hello) socket.send(JSON.stringify({ encrypted: false, ...hello }));
      else if (!resume && !register) this.#greeted({ channel_id: null });
    };
    socket.onmessage = ({ data }) => isCurrent() && this.#heard(data);
    socket.onclose = ({ code, reason }) => isCurrent() && this.#closed(code, reason);
    // For a failed handshake Node 20 has no close.
    socket.onerror = () => isCurrent() && this.#closed(1006, '');
  }

  #heard(data) {
    if (!this.#isOpen) {
      const hello = parsed(data);
      return hello && (hello.received ?? 0) <= this.#first + this.#written ? this.#greeted(hello) : this.#lost();
    }
    [this.#silent, this.#patience] = [0, 1];
    if (this.#isMarked) {
      if (data[0] === MARK) {
        data = data.slice(1);
        if (data[0] !== MARK) return this.#told(JSON.parse(data));
      }
      this.#received++;
      this.#acknowledge(this.#received - this.#acknowledged >= 64);
    }
    if (this.#topics.size && String(data).startsWith('{"topic":')) {
      const { topic, data: content, base64 } = parsed(data) ?? {};
      const [onMessage] = this.#topics.get(topic) ?? [];
      if (onMessage) return onMessage(base64 ? Uint8Array.from(atob(base64), (c) => c.charCodeAt()).buffer : content, topic);
    }
    this.#options.onMessage?.(data);
  }

  #greeted({ channel_id, resume, resumed, received, reason, lost }) {
    const isSame = received !== undefined;
    this.#timer = clearTimeout(this.#timer);
    for (const socket of this.#abandoned.splice(0)) socket.close();
    const isGap = isSame ? !resumed : this.#id !== undefined;
    [this.#id, this.#token, this.#attempt, this.#isOpen] = [channel_id, resume, 0, true];
    // Nobody knows what an old channel has heard.
    const unsent = isSame ? this.#first - received : this.#written;
    this.#forget(isSame ? Math.max(0, -unsent) : unsent);
    this.#first = received ?? 0;
    if (isSame) {
      this.#written = 0;
      if (isGap) this.#received += lost;
    } else {
      [this.#received, this.#acknowledged] = [0, 0];
      this.#forsake();
    }
    this.#again = [...this.#asks.values()].some(({ isSaid }) => isSaid) ? Infinity : 0;
    if (!isSame) this.#subscribeAgain();
    this.#say();
    this.#flush();
    // The page's code may fail.
    if (unsent > 0) this.#options.onLost?.(unsent);
    if (isGap) this.#options.onGap?.(lost ?? null, reason ?? 'closed');
    this.#options.onOpen?.({ id: channel_id, resumed: isSame });
  }

  #told({ dropped, gap, unsent, again, id, error, ...answer }) {
    if (dropped) {
      this.#received += dropped;
      return this.#options.onGap?.(dropped, 'dropped');
    }
    if (gap) return this.#options.onGap?.(null, gap);
    if (unsent) return this.#options.onLost?.(unsent);
    if (again >= 0) {
      this.#again = again;
    } else {
      const ask = this.#asks.get(id);
      this.#asks.delete(id);
      if (ask) error ? ask.reject(new Error(error)) : ask.resolve(answer);
      else if (id === undefined && error) this.#options.onError?.(error);
      else if (id === undefined && this.#topics.delete(answer.unsubscribed)) this.#options.onError?.('forbidden', answer.unsubscribed);
      if (!this.#again || id === undefined) return this.#say();
      this.#again--;
    }
    if (this.#again) return;
    // The others were not executed.
    for (const ask of this.#asks.values()) ask.isSaid = false;
    this.#say();
  }

  #acknowledge(isDue) {
    if (isDue) {
      this.#timer = clearTimeout(this.#timer);
      this.#acknowledged = this.#received;
      this.#socket.send(`${MARK}{"ack":${this.#received}}`);
    } else {
      this.#timer ??= setTimeout(() => this.#acknowledge(true), this.#options.ackMs);
    }
  }

  #order(order) {
    return new Promise((resolve, reject) => {
      if (this.#isClosed || this.#asks.size >= this.#options.outboxMessagesMax) {
        return reject(new Error(this.#isClosed ? 'closed' : 'full'));
      }
      const text = MARK + JSON.stringify({ ...order, id: ++this.#ask });
      this.#asks.set(this.#ask, { order, text, resolve, reject });
      this.#say();
    });
  }

  #say() {
    // So many answers are said again.
    let room = this.#isOpen && !this.#again ? 16 : 0;
    for (const ask of this.#asks.values()) {
      if (!room--) return;
      if (ask.isSaid) continue;
      ask.isSaid = true;
      this.#socket.send(ask.text);
    }
  }

  /** The channel is gone: a publish may have come. All else can be said twice. */
  #forsake() {
    for (const [id, ask] of this.#asks) {
      if (ask.isSaid && ask.order.publish !== undefined) {
        this.#asks.delete(id);
        ask.reject(new Error('lost'));
      }
      ask.isSaid = false;
    }
  }

  #subscribeAgain() {
    const asked = [...this.#asks.values()].map(({ order }) => order.subscribe);
    for (const [topic, [onMessage]] of this.#topics) {
      if (!asked.includes(topic)) this.subscribe(topic, onMessage).catch(({ message }) => this.#options.onError?.(message, topic));
    }
  }

  #flush() {
    while (this.#isOpen && this.#written < this.#outbox.length) {
      const data = this.#outbox[this.#written++];
      this.#socket.send(this.#isMarked && data[0] === MARK ? MARK + data : data);
      if (!this.#options.resume) this.#forget(1);
    }
  }

  #forget(count) {
    for (const data of this.#outbox.splice(0, count)) {
      this.#outboxBytes -= sizeOf(data);
      this.#first++;
      if (this.#written) this.#written--;
    }
  }

  #lost(waitMs) {
    if (this.#isClosed) return;
    this.#timer = clearTimeout(this.#timer);
    const socket = this.#socket;
    [this.#socket, this.#isOpen, this.#silent] = [null, false, 0];
    // One that hangs would hold up the next in a browser (RFC 6455 4.1).
    if (socket?.readyState === 0) socket.close();
    else if (socket?.readyState === 1 && this.#abandoned.push(socket) > 3) this.#abandoned.shift().close();
    const { baseMs, capMs, random } = this.#options;
    // Full jitter: who was lost together does not come back together.
    waitMs ??= random() * Math.min(capMs, baseMs * 2 ** this.#attempt++);
    this.#timer = setTimeout(() => begin(() => this.#open()).catch(this.#failed), waitMs);
    this.#options.onRetry?.(waitMs);
  }

  async #closed(code, reason) {
    const wasOpen = this.#isOpen;
    this.#timer = clearTimeout(this.#timer);
    [this.#socket, this.#isOpen] = [null, false];
    if (code !== 1006) {
      this.#token = null;
      this.#forsake();
      if (code === 4401) {
        this.#listen('removeEventListener');
        // No attempt meanwhile; if it fails the next asks again.
        const isNew = await begin(() => this.#options.onUnauthorized?.()).catch(() => true);
        if (this.#isClosed) return;
        this.#listen('addEventListener');
        if (!isNew) return this.#end(code, reason);
      } else if (FINAL.includes(code) || (code >= 3000 && !AGAIN.includes(code))) {
        return this.#end(code, reason);
      }
    }
    try {
      if (wasOpen) this.#options.onDown?.(code, reason);
    } finally {
      this.#lost(code === 1012 ? parsed(reason)?.retry_ms : null);
    }
  }

  #end(code, reason) {
    if (this.#isClosed) return;
    this.#timer = clearTimeout(this.#timer);
    clearInterval(this.#beats);
    this.#listen('removeEventListener');
    [this.#isClosed, this.#isOpen, this.#socket] = [true, false, null];
    for (const { reject } of this.#asks.values()) reject(new Error('closed'));
    this.#asks.clear();
    for (const socket of this.#abandoned.splice(0)) socket.close();
    const { onClose } = this.#options;
    this.#options = {};
    onClose?.(code, reason);
  }
}
