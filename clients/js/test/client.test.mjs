// The client against a daemon, through a network that is cut. Wants PUSHRING_URL, a demo's address; run by
// `cargo test --test promises js_client` and, with the demo running, by
// `PUSHRING_URL=http://127.0.0.1:8080 node --experimental-websocket --test clients/js/test/`.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import net from 'node:net';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { connect } from '../index.js';

const target = new URL(process.env.PUSHRING_URL);
const PATIENCE_MS = 20_000;

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
    cut: () => pairs.forEach((socket) => socket.destroy()),
    end: () => {
      pairs.forEach((socket) => socket.destroy());
      server.close();
    },
  };
}

function until(condition) {
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

/** A socket that is played by hand. */
function played() {
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
  const answers = [true, false];
  const closes = [];
  const channel = connect('ws://x/', {
    WebSocket,
    random: () => 0,
    onUnauthorized: () => answers.shift(),
    onClose: (code) => closes.push(code),
  });
  sockets[0].hello({});
  for (let at = 0; at < 64; at++) sockets[0].onmessage({ data: 'x' });
  assert.deepEqual(sockets[0].sent, ['\u001e{"ack":64}']);
  sockets[0].onclose({ code: 4401, reason: '' });
  await until(() => sockets.length === 2);
  sockets[1].onclose({ code: 4401, reason: '' });
  await until(() => closes.length === 1);
  assert.ok(!channel.send('x'), 'it has ended');
});

test('it is small', async () => {
  const source = await readFile(new URL('../index.js', import.meta.url));
  assert.ok(gzipSync(source, { level: 9 }).length <= 4096);
});
