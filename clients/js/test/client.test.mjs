// The client against a daemon, through a network that is cut. Wants PUSHRING_URL, a demo's address, and PUSHRING_HUB_URL, that of
// an open hub where all may publish to `public.*`; run by `cargo test --test promises js_client` and, with these running, by
// `PUSHRING_URL=http://127.0.0.1:8080 PUSHRING_HUB_URL=… node --experimental-websocket --test clients/js/test/`.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import net from 'node:net';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { connect } from '../index.js';
import { EventStream } from '../sse.js';
import { played, until } from './played.mjs';

const target = new URL(process.env.PUSHRING_URL);

/** A network between client and daemon, which can be cut. */
async function network() {
  const pairs = new Set();
  const server = net.createServer((client) => {
    const upstream = net.connect(Number(target.port), target.hostname);
    pairs.add(client).add(upstream);
    client.pipe(upstream).pipe(client);
    for (const socket of [client, upstream]) socket.on('error', () => {}).on('close', () => pairs.delete(socket));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  return {
    url: `ws://127.0.0.1:${port}/echo:pushring:sys/`,
    // Nothing goes through any more, and nobody is told.
    freeze: () =>
      pairs.forEach((socket) => {
        socket.unpipe();
        socket.pause();
      }),
    cut: () => pairs.forEach((socket) => socket.destroy()),
    end: () => {
      pairs.forEach((socket) => socket.destroy());
      server.close();
    },
  };
}

test('each message comes once and in order, however often the network is cut', async () => {
  const lines = await network();
  const heard = [];
  const opens = [];
  const complaints = [];
  const channel = connect(lines.url, {
    baseMs: 20,
    onMessage: (data) => heard.push(data),
    onOpen: (open) => opens.push(open),
    onGap: (...gap) => complaints.push(gap),
    onLost: (count) => complaints.push(count),
    onClose: (...close) => complaints.push(close),
  });
  for (let round = 0; round < 20; round++) {
    for (let at = 0; at < 5; at++) assert.ok(channel.send(`${round * 5 + at}`));
    if (round % 2) await until(() => heard.length > round * 3);
    await until(() => channel.isOpen);
    const count = opens.length;
    lines.cut();
    await until(() => opens.length > count);
  }
  await until(() => heard.length === 100);
  assert.deepEqual(heard, Array.from({ length: 100 }, (_, at) => String(at)));
  assert.deepEqual(complaints, []);
  assert.ok(opens.length > 20 && opens.slice(1).every((open) => open.resumed && open.id === opens[0].id));
  channel.close();
  assert.equal(complaints.length, 1, 'and its end is told');
  lines.end();
});

test('a connection that is dead and does not say so is found, and the channel goes on', async () => {
  const lines = await network();
  const heard = [];
  const opens = [];
  const gaps = [];
  const channel = connect(lines.url, {
    baseMs: 20,
    beatMs: 50,
    onMessage: (data) => heard.push(data),
    onOpen: (open) => opens.push(open),
    onGap: (...gap) => gaps.push(gap),
  });
  channel.send('before');
  await until(() => heard.length === 1);
  for (let round = 0; round < 3; round++) {
    const count = opens.length;
    lines.freeze();
    await until(() => opens.length > count);
  }
  channel.send('behind');
  await until(() => heard.length === 2);
  assert.deepEqual(heard, ['before', 'behind']);
  assert.ok(opens.slice(1).every((open) => open.resumed));
  assert.deepEqual(gaps, []);
  channel.close();
  lines.end();
});

test('one that is only quiet is asked, and answers', async () => {
  const lines = await network();
  const controls = [];
  class Watched extends WebSocket {
    constructor(...how) {
      super(...how);
      this.addEventListener('message', ({ data }) => data[0] === '\u001e' && controls.push(data));
    }
  }
  const heard = [];
  const channel = connect(lines.url, { beatMs: 50, WebSocket: Watched, onMessage: (data) => heard.push(data) });
  await until(() => controls.length >= 3);
  assert.ok(controls.every((text) => text === '\u001e{"pong":0}'));
  assert.deepEqual(heard, []);
  channel.close();
  lines.end();
});

test('texts that look like control texts and bytes come as they were sent', async () => {
  const lines = await network();
  const heard = [];
  const channel = connect(lines.url, { onMessage: (data) => heard.push(data) });
  const sent = ['\u001e{"dropped":3}', '\u001e\u001e', '', 'ünïcode'];
  sent.forEach((data) => channel.send(data));
  channel.send(new Uint8Array([0x1e, 1]));
  await until(() => heard.length === 5);
  assert.deepEqual(heard.slice(0, 4), sent);
  assert.deepEqual([...new Uint8Array(heard[4])], [0x1e, 1]);
  channel.close();
  lines.end();
});

test('two clients meet at a topic', async () => {
  const hub = connect(process.env.PUSHRING_HUB_URL, {});
  const heard = [];
  await hub.subscribe('public.js', (data, topic) => heard.push([topic, data]));
  const other = connect(process.env.PUSHRING_HUB_URL, {});
  await other.publish('public.js', 'text');
  await other.publish('public.js', { x: [1] });
  await until(() => heard.length === 2);
  assert.deepEqual(heard, [
    ['public.js', 'text'],
    ['public.js', { x: [1] }],
  ]);
  await assert.rejects(other.subscribe('private', () => {}), /forbidden/);
  await hub.unsubscribe('public.js');
  hub.close();
  other.close();
});

test('in Node a token that is refused is told, as its page says', async () => {
  const page = await readFile(new URL('../README.md', import.meta.url), 'utf8');
  const [, source] = page.match(/```js\n(class NodeWebSocket[^]*?)```/);
  const NodeWebSocket = new Function(`${source}; return NodeWebSocket`)();
  const told = [];
  const tokens = ['none', 'none either'];
  connect(process.env.PUSHRING_HUB_URL, {
    WebSocket: NodeWebSocket,
    baseMs: 1,
    protocols: () => [`bearer.${tokens[0].replaceAll(' ', '-')}`],
    onUnauthorized: () => {
      told.push(tokens.shift());
      return tokens.length > 0;
    },
    onClose: (code) => told.push(code),
  });
  await until(() => told.length === 3);
  assert.deepEqual(told, ['none', 'none either', 4401]);
});

test('it registers with a node', async () => {
  const page = await fetch(target);
  const token = page.headers.get('set-cookie').split(';')[0].split('=')[1];
  const heard = [];
  const channel = connect(`ws://${target.host}/`, {
    register: { target_process: 'echo:pushring:sys', auth_token: token },
    onMessage: (data) => heard.push(data),
  });
  channel.send('hello');
  await until(() => heard.length === 1);
  assert.deepEqual(heard, ['hello']);
  channel.close();
});

/** As browsers have it, as far as the client needs it. */
class EventSourceHere extends EventTarget {
  readyState = 0;
  #aborts = new AbortController();
  #last = '';

  constructor(url) {
    super();
    this.#run(url);
  }

  async #run(url) {
    while (this.readyState < 2) {
      try {
        const headers = { accept: 'text/event-stream', ...(this.#last && { 'last-event-id': this.#last }) };
        const response = await fetch(url, { headers, signal: this.#aborts.signal });
        let text = '';
        for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
          text += chunk;
          for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) this.#hear(text.slice(0, end));
        }
      } catch {
        // It comes back, unless it was closed.
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  #hear(event) {
    const of = (name) => [...event.matchAll(new RegExp(`^${name}: (.*)$`, 'gm'))].map((match) => match[1]);
    this.#last = of('id')[0] ?? this.#last;
    if (of('data').length) this.dispatchEvent(new MessageEvent(of('event')[0] ?? 'message', { data: of('data').join('\n') }));
  }

  close() {
    this.readyState = 2;
    this.#aborts.abort();
  }
}

test('where no upgrade comes through it goes on as an event stream', async () => {
  globalThis.EventSource = EventSourceHere;
  const blocked = class {
    constructor() {
      queueMicrotask(() => this.onclose({ code: 1006, reason: '' }));
    }
  };
  const heard = [];
  const told = [];
  const tell = (what) => (...words) => told.push([what, ...words]);
  const channel = connect(process.env.PUSHRING_HUB_URL, {
    WebSocket: blocked,
    fallback: EventStream,
    baseMs: 1,
    onGap: tell('gap'),
    onLost: tell('lost'),
    onError: tell('error'),
    onClose: tell('close'),
  });
  await channel.subscribe('public.sse', (data, topic) => heard.push([topic, data]));
  const other = connect(process.env.PUSHRING_HUB_URL, {});
  // Its subscription is the hub's to make.
  while (!heard.length) {
    await other.publish('public.sse', 'first');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await channel.publish('public.sse', { up: [1] });
  await until(() => heard.some(([, data]) => typeof data === 'object'));
  assert.deepEqual(heard.at(-1), ['public.sse', { up: [1] }]);
  channel.send('nobody hears this');
  await until(() => told.length);
  assert.deepEqual(told, [['error', 'unheard']]);
  // What could not be said is told to who waits for its answer.
  const { fetch } = globalThis;
  globalThis.fetch = async (url, options) => (options?.method === 'POST' ? { ok: false } : fetch(url, options));
  await assert.rejects(channel.publish('public.sse', 'refused'), /lost/);
  globalThis.fetch = fetch;
  // A topic that was left is not in the next stream either.
  await channel.unsubscribe('public.sse');
  assert.deepEqual(told.slice(1), [['gap', null, 'closed']]);
  await channel.subscribe('public.sse2', (data) => heard.push(data));
  while (heard.at(-1) !== 'second') {
    await other.publish('public.sse', 'not heard');
    await other.publish('public.sse2', 'second');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.ok(!heard.some((what) => what[1] === 'not heard'));
  channel.close();
  other.close();
});

test('what is missing is told, and what may not have come', async () => {
  const { sockets, WebSocket } = played();
  const told = [];
  const tell = (what) => (...words) => told.push([what, ...words]);
  const channel = connect('ws://x/', {
    WebSocket,
    random: () => 0,
    outboxMessagesMax: 2,
    onMessage: tell('message'),
    onGap: tell('gap'),
    onLost: tell('lost'),
    onClose: tell('close'),
  });
  assert.deepEqual(sockets[0].protocols, ['pushring.1']);
  assert.ok(channel.send('a') && channel.send('b') && !channel.send('too many'));
  sockets[0].hello({});
  assert.ok(channel.send('c'), 'what was sent makes room');
  sockets[0].onmessage({ data: 'one' });
  sockets[0].onmessage({ data: '\u001e{"dropped":2}' });
  sockets[0].onclose({ code: 1006, reason: '' });
  await until(() => sockets.length === 2);
  assert.equal(sockets[1].protocols[1], `resume.7.${'t'.repeat(22)}.3`);
  sockets[1].hello({ resumed: false, reason: 'trimmed', lost: 4, received: 0 });
  assert.deepEqual(sockets[1].sent, ['b', 'c']);
  sockets[1].onmessage({ data: 'two' });
  sockets[1].onclose({ code: 1006, reason: '' });
  await until(() => sockets.length === 3);
  assert.equal(sockets[2].protocols[1], `resume.7.${'t'.repeat(22)}.8`);
  sockets[2].hello({ channel_id: 9, resumed: false, reason: 'elsewhere' });
  assert.equal(channel.id, 9);
  sockets[2].onclose({ code: 1012, reason: '{"retry_ms":1}' });
  await until(() => sockets.length === 4);
  assert.deepEqual(sockets[3].protocols, ['pushring.1'], 'a close frame ends the channel');
  sockets[3].hello({ channel_id: 11 });
  sockets[3].onclose({ code: 1009, reason: 'too big' });
  assert.deepEqual(told, [
    ['message', 'one'],
    ['gap', 2, 'dropped'],
    ['lost', 1],
    ['gap', 4, 'trimmed'],
    ['message', 'two'],
    ['lost', 2],
    ['gap', null, 'elsewhere'],
    ['gap', null, 'closed'],
    ['close', 1009, 'too big'],
  ]);
});

test('a login that has ended is asked for, and acknowledgements go out', async () => {
  const { sockets, WebSocket } = played();
  const answers = [true, new Error('offline'), false];
  const closes = [];
  const channel = connect('ws://x/', {
    WebSocket,
    random: () => 0,
    onUnauthorized: async () => {
      const answer = answers.shift();
      if (answer instanceof Error) throw answer;
      return answer;
    },
    onClose: (code) => closes.push(code),
  });
  sockets[0].hello({});
  for (let at = 0; at < 64; at++) sockets[0].onmessage({ data: 'x' });
  assert.deepEqual(sockets[0].sent, ['\u001e{"ack":64}']);
  sockets[0].onclose({ code: 4401, reason: '' });
  await until(() => sockets.length === 2);
  sockets[1].onclose({ code: 4401, reason: '' });
  await until(() => sockets.length === 3);
  sockets[2].onclose({ code: 4401, reason: '' });
  await until(() => closes.length === 1);
  assert.ok(!channel.send('x'), 'it has ended');
});

test('a login that takes longer than a connection may is asked for once', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const { sockets, WebSocket } = played();
  let asked = 0;
  let logIn;
  const channel = connect('ws://x/', {
    WebSocket,
    random: () => 0,
    onUnauthorized: () => {
      asked++;
      return new Promise((resolve) => (logIn = resolve));
    },
  });
  const closed = sockets[0].onclose({ code: 4401, reason: '' });
  t.mock.timers.tick(600_000);
  assert.deepEqual([asked, sockets.length], [1, 1]);
  logIn(true);
  await closed;
  t.mock.timers.tick(0);
  assert.equal(sockets.length, 2);
  channel.close();
});

test('what fails in the page is told to the page, and the channel goes on', async () => {
  const { sockets, WebSocket } = played();
  const fails = (name) => () => {
    throw new Error(name);
  };
  const down = [];
  const channel = connect('ws://x/', {
    WebSocket,
    random: () => 0,
    onOpen: fails('open'),
    onGap: fails('gap'),
    onDown: (code) => {
      down.push(code);
      throw new Error('down');
    },
    onRetry: () => down.push('retry'),
  });
  channel.send('early');
  assert.throws(() => sockets[0].hello({}), /open/);
  assert.deepEqual([channel.isOpen, sockets[0].sent], [true, ['early']]);
  await assert.rejects(sockets[0].onclose({ code: 1001, reason: '' }), /down/);
  assert.deepEqual(down, [1001, 'retry']);
  await until(() => sockets.length === 2);
  channel.send('behind');
  assert.throws(() => sockets[1].hello({ channel_id: 8 }), /gap/);
  assert.deepEqual([channel.id, channel.isOpen, sockets[1].sent], [8, true, ['behind']]);
  channel.close();
});

test('the outbox is as large as it says', () => {
  const { WebSocket } = played();
  const fits = (data) => {
    const channel = connect('ws://x/', { WebSocket, outboxBytesMax: 10 });
    const fits = channel.send(data);
    channel.close();
    return fits;
  };
  for (const data of ['x'.repeat(10), 'ü'.repeat(5), '€€€x', new Uint8Array(10), new Blob(['x'.repeat(10)])]) assert.ok(fits(data), data);
  for (const data of ['x'.repeat(11), 'ü'.repeat(6), '€€€€', new Uint8Array(11), new Blob(['x'.repeat(11)])]) assert.ok(!fits(data), data);
});

test('a subscription that a new token does not allow is told to have ended', async () => {
  const { sockets, WebSocket } = played();
  const errors = [];
  const channel = connect('ws://x/hub', { WebSocket, random: () => 0, onError: (...why) => errors.push(why) });
  const answer = (socket, fields) => sockets[socket].onmessage({ data: `\u001e${JSON.stringify(fields)}` });
  const subscribed = channel.subscribe('a', () => {});
  sockets[0].hello({});
  answer(0, { subscribed: 'a', id: 1 });
  await subscribed;
  const renewed = channel.renew('T');
  answer(0, { unsubscribed: 'a' });
  answer(0, { renewed: null, id: 2 });
  await renewed;
  assert.deepEqual(errors, [['forbidden', 'a']]);
  await sockets[0].onclose({ code: 1012, reason: '{"retry_ms":0}' });
  await until(() => sockets.length === 2);
  sockets[1].hello({ channel_id: 9 });
  assert.deepEqual(sockets[1].sent, []);
  channel.close();
});

test('an event stream speaks control texts also in the place of a path without resume', async () => {
  const { sockets: failed, WebSocket } = played();
  const { sockets: streams, WebSocket: fallback } = played();
  const told = [];
  const tell = (what) => (...words) => told.push([what, ...words]);
  const channel = connect('ws://x/', { WebSocket, fallback, random: () => 0, resume: false, onMessage: tell('message'), onGap: tell('gap') });
  for (const at of [0, 1]) {
    await until(() => failed.length === at + 1);
    failed[at].onclose({ code: 1006, reason: '' });
  }
  await until(() => streams.length === 1);
  streams[0].onmessage({ data: '{"pushring":1,"channel_id":7}' });
  streams[0].onmessage({ data: '\u001e{"gap":"trimmed"}' });
  streams[0].onmessage({ data: '\u001e\u001emarked' });
  channel.send('\u001emarked');
  assert.deepEqual(told, [['gap', null, 'trimmed'], ['message', '\u001emarked']]);
  assert.deepEqual(streams[0].sent, ['\u001e\u001emarked']);
  channel.close();
});

test('a hub is subscribed to, published to and renewed at', async () => {
  const { sockets, WebSocket } = played();
  const heard = [];
  const errors = [];
  const channel = connect('ws://x/hub', { WebSocket, random: () => 0, onMessage: (data) => heard.push(data), onError: (...why) => errors.push(why) });
  const orders = (socket) => sockets[socket].sent.map((text) => JSON.parse(text.slice(1)));
  const answer = (socket, fields) => sockets[socket].onmessage({ data: `\u001e${JSON.stringify(fields)}` });
  const subscribed = channel.subscribe('a', (data, topic) => heard.push([topic, data]));
  sockets[0].hello({});
  assert.deepEqual(orders(0), [{ subscribe: 'a', envelope: true, id: 1 }]);
  answer(0, { subscribed: 'a', id: 1 });
  await subscribed;
  sockets[0].onmessage({ data: '{"topic":"a","data":{"x":1}}' });
  sockets[0].onmessage({ data: '{"topic":"a","base64":"AQI="}' });
  sockets[0].onmessage({ data: '{"topic":"b","data":1}' });
  assert.deepEqual([heard[0], [...new Uint8Array(heard[1][1])], heard[2]], [['a', { x: 1 }], [1, 2], '{"topic":"b","data":1}']);
  const refused = channel.publish('a', 'text');
  answer(0, { error: 'forbidden', id: 2 });
  await assert.rejects(refused, /forbidden/);
  answer(0, { error: 'unheard' });
  assert.deepEqual(errors, [['unheard']]);
  // The connection is lost: the hub says again what it has answered, and what is not among that is said once more.
  const published = channel.publish('a', { y: 1 });
  const renewed = channel.renew('T');
  sockets[0].onclose({ code: 1006, reason: '' });
  await until(() => sockets.length === 2);
  sockets[1].hello({ resumed: true, received: 0 });
  const late = channel.publish('a', 'late');
  assert.deepEqual(orders(1), []);
  answer(1, { again: 2 });
  answer(1, { error: 'forbidden', id: 2 });
  assert.deepEqual(orders(1), []);
  answer(1, { published: 'a', id: 3 });
  await published;
  assert.deepEqual(orders(1), [{ renew: 'T', id: 4 }, { publish: 'a', text: 'late', id: 5 }]);
  answer(1, { renewed: null, id: 4 });
  await renewed;
  // No more at a time than are said again.
  const many = Array.from({ length: 20 }, () => channel.publish('a', 'x'));
  assert.equal(orders(1).length, 2 + 15);
  answer(1, { published: 'a', id: 5 });
  await late;
  assert.equal(orders(1).length, 2 + 16);
  for (let id = 6; id < 26; id++) answer(1, { published: 'a', id });
  await Promise.all(many);
  // A new channel: nobody knows of a publish.
  const lost = channel.publish('a', 'lost');
  // A new channel is subscribed again.
  sockets[1].onclose({ code: 1012, reason: '{"retry_ms":0}' });
  await assert.rejects(lost, /lost/);
  await until(() => sockets.length === 3);
  sockets[2].hello({ channel_id: 9 });
  assert.deepEqual(orders(2), [{ subscribe: 'a', envelope: true, id: 27 }]);
  answer(2, { error: 'forbidden', id: 27 });
  await until(() => errors.length === 2);
  assert.deepEqual(errors[1], ['forbidden', 'a']);
  const waiting = channel.unsubscribe('b');
  channel.close();
  await assert.rejects(waiting, /closed/);
});

test('it registers on / as the client of a node does', async () => {
  const { sockets, WebSocket } = played();
  const told = [];
  const channel = connect('ws://x/', {
    WebSocket,
    random: () => 0,
    register: async () => ({ target_process: 'chat:chat:template.os', auth_token: 'T' }),
    onMessage: (data) => told.push(data),
    onGap: (...gap) => told.push(gap),
    onOpen: (open) => told.push(open),
  });
  assert.deepEqual(sockets[0].protocols, []);
  await sockets[0].onopen();
  assert.deepEqual(sockets[0].sent, ['{"encrypted":false,"target_process":"chat:chat:template.os","auth_token":"T"}']);
  sockets[0].onmessage({ data: '{"channel_id":7}' });
  sockets[0].onmessage({ data: '\u001eraw' });
  assert.ok(channel.send('\u001eraw'));
  assert.deepEqual(sockets[0].sent[1], '\u001eraw');
  sockets[0].onclose({ code: 1006, reason: '' });
  await until(() => sockets.length === 2);
  sockets[1].onmessage({ data: '{"channel_id":8}' });
  assert.deepEqual(told, [{ id: 7, resumed: false }, '\u001eraw', [null, 'closed'], { id: 8, resumed: false }]);
  channel.close();
});

test('a path without resume is open with its socket', async () => {
  const { sockets, WebSocket } = played();
  const channel = connect('ws://x/', { WebSocket, resume: false });
  assert.ok(channel.send('early') && !channel.isOpen);
  await sockets[0].onopen();
  assert.deepEqual([channel.isOpen, channel.id, sockets[0].sent], [true, null, ['early']]);
  channel.close();
});

test('close codes are obeyed as the protocol has them', async () => {
  const page = await readFile(new URL('../../../docs/PROTOCOL.md', import.meta.url), 'utf8');
  const rows = page.matchAll(/^\| (\d{4}) \| .* \| (connect again|mend the client|log in again)[^|]*\|$/gm);
  const table = [...rows].map(([, code, advice]) => [Number(code), advice]);
  assert.ok(table.length >= 13, `${table}`);
  for (const [code, advice] of table) {
    const { sockets, WebSocket } = played();
    let ended = null;
    const channel = connect('ws://x/', { WebSocket, random: () => 0, onClose: (code) => (ended = code), onUnauthorized: () => false });
    sockets[0].hello({});
    sockets[0].onclose({ code, reason: '' });
    await until(() => ended || sockets.length === 2);
    assert.equal(ended === null, advice === 'connect again', `${code}: ${advice}`);
    channel.close();
  }
});

test('it is as small as its page says', async () => {
  const page = await readFile(new URL('../README.md', import.meta.url), 'utf8');
  for (const [file, words] of [['index.js', /(\d[\d.]*) kB compressed/], ['sse.js', /adds (\d[\d.]*) kB/]]) {
    const bytes = gzipSync(await readFile(new URL(`../${file}`, import.meta.url)), { level: 9 }).length;
    assert.ok(bytes <= Number(page.match(words)[1]) * 1024, `${file}: ${bytes}`);
  }
});
