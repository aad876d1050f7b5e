// What a network, a server and the page's own code do at the worst moment, with sockets that are played by hand.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect } from '../index.js';
import { EventStream } from '../sse.js';
import { played, until } from './played.mjs';

const MARK = '\u001e';
const orders = (socket) => socket.sent.map((text) => JSON.parse(text.slice(1)));
const answer = (socket, fields) => socket.onmessage({ data: MARK + JSON.stringify(fields) });

/** The events `online` and `offline` of a browser; `end` takes them away again. */
function browser() {
  const events = new EventTarget();
  for (const name of ['addEventListener', 'removeEventListener']) globalThis[name] = events[name].bind(events);
  return {
    is: (what) => events.dispatchEvent(new Event(what)),
    end: () => ['addEventListener', 'removeEventListener'].forEach((name) => delete globalThis[name]),
  };
}

test('a network that comes and goes while a login is asked for begins no other attempt', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const network = browser();
  const { sockets, WebSocket } = played();
  const asked = [];
  const closes = [];
  connect('ws://x/', {
    WebSocket,
    random: () => 0,
    onUnauthorized: () => new Promise((resolve) => asked.push(resolve)),
    onClose: (code) => closes.push(code),
  });
  for (const isNew of [true, false]) {
    const socket = sockets.at(-1);
    const count = asked.length + 1;
    const closed = socket.onclose({ code: 4401, reason: '' });
    // Some sockets tell it twice.
    socket.onerror({});
    for (const what of ['offline', 'online', 'online', 'offline', 'online']) {
      network.is(what);
      t.mock.timers.tick(60_000);
    }
    assert.deepEqual([asked.length, sockets.length], [count, count]);
    asked.at(-1)(isNew);
    await closed;
    t.mock.timers.tick(0);
  }
  assert.deepEqual([sockets.length, closes], [2, [4401]]);
  network.is('online');
  t.mock.timers.tick(60_000);
  assert.equal(sockets.length, 2, 'it has ended');
  network.end();
});

test('a network that is there again is tried at once, also after a login', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const network = browser();
  const { sockets, WebSocket } = played();
  const channel = connect('ws://x/', { WebSocket, random: () => 1, onUnauthorized: () => true });
  await sockets[0].onclose({ code: 4401, reason: '' });
  network.is('online');
  t.mock.timers.tick(0);
  assert.equal(sockets.length, 2);
  channel.close();
  network.end();
});

test('what is no JSON is refused, and holds up nothing', async () => {
  const { sockets, WebSocket } = played();
  const opens = [];
  const channel = connect('ws://x/hub', { WebSocket, random: () => 0, onOpen: (open) => opens.push(open) });
  const circle = {};
  circle.circle = circle;
  for (let at = 0; at < 20; at++) await assert.rejects(channel.publish('a', at % 2 ? circle : 1n), TypeError);
  sockets[0].hello({});
  assert.equal(opens.length, 1);
  for (let at = 0; at < 20; at++) await assert.rejects(channel.publish('a', at % 2 ? circle : 1n), TypeError);
  const published = channel.publish('a', 'text');
  const [order] = orders(sockets[0]);
  assert.equal(order.text, 'text');
  answer(sockets[0], { published: 'a', id: order.id });
  await published;
  channel.close();
});

test('an option that is undefined is one that is not there', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const { sockets, WebSocket } = played();
  const none = { baseMs: undefined, capMs: undefined, helloMs: undefined, ackMs: undefined, beatMs: undefined, random: undefined };
  const channel = connect('ws://x/', { WebSocket, ...none, outboxMessagesMax: undefined, outboxBytesMax: undefined });
  assert.ok(channel.send('x'));
  t.mock.timers.tick(9_999);
  assert.equal(sockets.length, 1);
  sockets[0].hello({});
  t.mock.timers.tick(14_999);
  assert.deepEqual(sockets[0].sent, ['x']);
  channel.close();
});

test('a registration that comes too late is not said to a connection that was given up', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const { sockets, WebSocket } = played();
  const waiting = [];
  const channel = connect('ws://x/', { WebSocket, random: () => 0, register: () => new Promise((resolve) => waiting.push(resolve)) });
  const late = sockets[0].onopen();
  sockets[0].readyState = 1;
  t.mock.timers.tick(10_000);
  t.mock.timers.tick(0);
  assert.equal(sockets.length, 2);
  waiting[0]({ target_process: 'a:b:c', auth_token: 'T' });
  await late;
  assert.deepEqual(sockets[0].sent, []);
  channel.close();
});

test('where it cannot begin it leaves nothing behind', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const network = browser();
  let made = 0;
  class None {
    constructor() {
      made++;
      throw new SyntaxError('no address');
    }
  }
  assert.throws(() => connect('ws://x/', { WebSocket: None }), SyntaxError);
  network.is('online');
  t.mock.timers.tick(3_600_000);
  assert.equal(made, 1);
  network.end();
});

test('an address or a token that cannot be had now is asked for again', async (t) => {
  const timers = [];
  t.mock.method(globalThis, 'setTimeout', (work) => timers.push(work));
  const { sockets, WebSocket } = played();
  const errors = [];
  const tokens = ['a', null, 'b'];
  const protocols = () => {
    const token = tokens.shift();
    if (!token) throw new Error('no token');
    return [`bearer.${token}`];
  };
  const channel = connect('ws://x/', { WebSocket, protocols, random: () => 0, onError: (why) => errors.push(why) });
  sockets[0].onclose({ code: 1006, reason: '' });
  // The newest of them is the one that counts: the next attempt, its patience, and the attempt behind that.
  await timers.pop()();
  assert.deepEqual(errors, ['no token']);
  timers.pop()();
  timers.pop()();
  assert.deepEqual(sockets[1].protocols, ['pushring.1', 'bearer.b']);
  channel.close();
});

test('a registration that cannot be had now is asked for again, and told, whoever is there to hear it', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  for (const hears of [true, false]) {
    const told = [];
    t.mock.method(console, 'error', (why) => told.push(`console: ${why}`));
    const { sockets, WebSocket } = played();
    const registers = [async () => { throw new Error('offline'); }, () => { throw new Error('none'); }, async () => ({ auth_token: 'T' })];
    const channel = connect('ws://x/', {
      WebSocket,
      random: () => 0,
      register: () => registers.shift()(),
      onError: hears ? (why) => told.push(why) : undefined,
    });
    for (const at of [0, 1]) {
      await sockets[at].onopen();
      assert.deepEqual(sockets[at].sent, []);
      t.mock.timers.tick(10_000);
      t.mock.timers.tick(0);
    }
    assert.deepEqual(told, hears ? ['offline', 'none'] : ['console: offline', 'console: none']);
    await sockets[2].onopen();
    assert.deepEqual(sockets[2].sent, ['{"encrypted":false,"auth_token":"T"}']);
    channel.close();
  }
});

test('what was sent is sent again as it was, whatever the page does with its memory', async () => {
  const { sockets, WebSocket } = played();
  const channel = connect('ws://x/', { WebSocket, random: () => 0, outboxBytesMax: 8 });
  sockets[0].hello({});
  const memory = new ArrayBuffer(16);
  const view = new DataView(memory, 4, 4);
  view.setUint32(0, 0x01020304);
  assert.ok(channel.send(view) && channel.send(new Uint16Array([5, 6])));
  new Uint8Array(memory).fill(0xff);
  structuredClone(memory, { transfer: [memory] });
  sockets[0].onclose({ code: 1006, reason: '' });
  await until(() => sockets.length === 2);
  sockets[1].hello({ resumed: true, received: 0 });
  const bytes = (data) => [...new Uint8Array(data.buffer ?? data, data.byteOffset, data.byteLength)];
  assert.deepEqual(sockets[1].sent.map(bytes), [[1, 2, 3, 4], [5, 0, 6, 0]]);
  // What the server has makes room again.
  sockets[1].onclose({ code: 1006, reason: '' });
  await until(() => sockets.length === 3);
  sockets[2].hello({ resumed: true, received: 2 });
  assert.ok(channel.send(new ArrayBuffer(8)));
  channel.close();
});

test('behind its end nothing is told', async () => {
  for (const last of ['lost', 'gap']) {
    const { sockets, WebSocket } = played();
    const told = [];
    const tell = (what) => () => {
      told.push(what);
      if (what === last) channel.close();
    };
    const channel = connect('ws://x/', {
      WebSocket,
      random: () => 0,
      onLost: tell('lost'),
      onGap: tell('gap'),
      onOpen: tell('open'),
      onRetry: tell('retry'),
      onClose: tell('close'),
    });
    sockets[0].hello({});
    channel.send('x');
    sockets[0].onclose({ code: 1006, reason: '' });
    await until(() => sockets.length === 2);
    sockets[1].hello({ channel_id: 9, resumed: false, reason: 'unknown' });
    assert.deepEqual(told.slice(told.indexOf('lost')), last === 'lost' ? ['lost', 'close'] : ['lost', 'gap', 'close']);
  }
});

test('a subscription that was refused takes no later one with it', async () => {
  const { sockets, WebSocket } = played();
  const heard = [];
  const hear = (data) => heard.push(data);
  const channel = connect('ws://x/hub', { WebSocket, random: () => 0 });
  sockets[0].hello({});
  const first = channel.subscribe('a', hear);
  const left = channel.unsubscribe('a');
  const second = channel.subscribe('a', hear);
  assert.equal(orders(sockets[0]).length, 3);
  answer(sockets[0], { error: 'later', id: 1 });
  answer(sockets[0], { unsubscribed: 'a', id: 2 });
  answer(sockets[0], { subscribed: 'a', id: 3 });
  await assert.rejects(first, /later/);
  await left;
  await second;
  sockets[0].onmessage({ data: '{"topic":"a","data":1}' });
  assert.deepEqual(heard, [1]);
  channel.close();
});

test('subscribed hundreds of times, and left while the connection is lost, it has what was wanted last', async () => {
  const { sockets, WebSocket } = played();
  const channel = connect('ws://x/hub', { WebSocket, random: () => 0 });
  const names = Array.from({ length: 300 }, (_, at) => `t${at}`);
  const all = names.map((name) => channel.subscribe(name, () => {}));
  /** Obeys what it is told, and answers. */
  const obey = (socket, topics) => {
    for (let at = 0; at < socket.sent.length; at++) {
      const { subscribe, unsubscribe, id } = JSON.parse(socket.sent[at].slice(1));
      if (subscribe) topics.add(subscribe);
      else topics.delete(unsubscribe);
      answer(socket, { id, ...(subscribe ? { subscribed: subscribe } : { unsubscribed: unsubscribe }) });
    }
  };
  sockets[0].hello({});
  const before = new Set();
  obey(sockets[0], before);
  await Promise.all(all);
  assert.deepEqual([...before], names);
  sockets[0].onclose({ code: 1006, reason: '' });
  const left = names.filter((_, at) => at % 2).map((name) => channel.unsubscribe(name));
  await until(() => sockets.length === 2);
  const after = new Set();
  sockets[1].hello({ channel_id: 9, resumed: false, reason: 'unknown' });
  obey(sockets[1], after);
  await Promise.all(left);
  assert.deepEqual([...after].sort(), names.filter((_, at) => at % 2 === 0).sort());
  channel.close();
});

test('a text that only looks like that of a topic is a message', async () => {
  const { sockets, WebSocket } = played();
  const heard = [];
  const channel = connect('ws://x/hub', { WebSocket, onMessage: (data) => heard.push(data) });
  channel.subscribe('a', () => heard.push('not this')).catch(() => {});
  sockets[0].hello({});
  const texts = ['{"topic":', '{"topic":"a"', '{"topic":{}}', '{"topic":"toString"}'];
  for (const data of texts) sockets[0].onmessage({ data });
  assert.deepEqual(heard, texts);
  channel.close();
});

test('an event stream begins anew once, however many topics change at a time', async () => {
  const streams = [];
  globalThis.EventSource = class extends EventTarget {
    constructor(url) {
      super();
      Object.assign(this, { url, readyState: 1 });
      streams.push(this);
    }
    close() {
      this.readyState = 2;
    }
    opens() {
      this.dispatchEvent(new MessageEvent('channel', { data: '{"channel_id":7,"token":"t"}' }));
    }
  };
  const { sockets, WebSocket } = played();
  const gaps = [];
  const channel = connect('ws://x/hub', { WebSocket, fallback: EventStream, random: () => 0, onGap: (...gap) => gaps.push(gap) });
  for (const at of [0, 1]) {
    await until(() => sockets.length === at + 1);
    sockets[at].onclose({ code: 1006, reason: '' });
  }
  await until(() => streams.length === 1);
  streams[0].opens();
  const names = Array.from({ length: 100 }, (_, at) => `t${at}`);
  await Promise.all(names.map((name) => channel.subscribe(name, () => {})));
  assert.deepEqual([streams.length, streams[0].readyState, gaps.length], [2, 2, 1]);
  assert.deepEqual(streams[1].url.searchParams.getAll('topic'), names);
  streams[1].opens();
  await Promise.all(names.slice(1).map((name) => channel.unsubscribe(name)));
  assert.deepEqual([streams.length, gaps.length], [3, 2]);
  assert.deepEqual(streams[2].url.searchParams.getAll('topic'), ['t0']);
  // Closed in the same moment, it opens no other.
  channel.unsubscribe('t0').catch(() => {});
  channel.close();
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual([streams.length, streams[2].readyState], [3, 2]);
  delete globalThis.EventSource;
});
