// Chromium against the demo: its page, the node documentation's plain JavaScript, and the client library of the nodes.
// Wants PUSHRING_URL, the demo's address on loopback, and CHROMIUM, the browser.

import assert from 'node:assert/strict';
import { after, before, beforeEach, afterEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { launch } from './chromium.mjs';

const url = process.env.PUSHRING_URL;
const clientApi = fileURLToPath(import.meta.resolve('@kinode/client-api'));

let browser;
let page;
let complaints;

before(async () => {
  browser = await launch();
});

after(() => browser?.close());

/** The demo's page in a new tab; whatever the browser complains about is noted. */
async function openPage() {
  const tab = await browser.newPage();
  tab.setDefaultTimeout(20_000);
  tab.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text());
  });
  tab.on('pageerror', (error) => complaints.push(String(error)));
  tab.on('requestfailed', (request) => complaints.push(`${request.url()}: ${request.failure()?.errorText}`));
  tab.on('response', (response) => {
    if (response.status() >= 400) complaints.push(`${response.url()}: ${response.status()}`);
  });
  // As the nodes' apps load it: a module of the page's own origin.
  await tab.route('**/client-api.js', (route) => route.fulfill({ path: clientApi, contentType: 'text/javascript' }));
  await tab.goto(url);
  return tab;
}

beforeEach(async () => {
  complaints = [];
  page = await openPage();
});

afterEach(async () => {
  await page.close();
  assert.deepEqual(complaints, [], 'the browser has something to complain about');
});

test('the page opens its channels, measures, and chats between tabs', async () => {
  const other = await openPage();
  for (const tab of [page, other]) {
    await tab.waitForFunction(
      () => document.querySelectorAll('#channels .open').length === 5 && document.querySelectorAll('#tabs button').length === 1,
    );
  }
  await page.fill('#text', 'to everybody');
  await page.press('#text', 'Enter');
  await other.waitForFunction(() => document.getElementById('messages').textContent.includes('to everybody'));
  await other.click('#tabs button');
  await other.fill('#text', 'to you alone');
  await other.press('#text', 'Enter');
  await page.waitForFunction(() => document.getElementById('messages').textContent.includes('to you alone'));
  await page.click('#load button[data-window="16"]');
  await page.waitForFunction(() => Number(document.getElementById('rate-in').textContent.replace(/\D/g, '')) > 100);
  await page.click('#load button[data-window="0"]');
  await other.close();
});

test('plain JavaScript registers for a channel and talks over it', async () => {
  const { channel, echoes } = await page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const cookie = document.cookie.split('; ').find((cookie) => cookie.startsWith('kinode-auth_'));
        if (!cookie) return reject(new Error('the page got no login cookie'));
        const socket = new WebSocket(`ws://${location.host}/`);
        socket.binaryType = 'arraybuffer';
        const echoes = [];
        let channel;
        socket.onopen = () =>
          socket.send(
            JSON.stringify({
              auth_token: cookie.slice(cookie.indexOf('=') + 1),
              target_process: 'echo:pushring:sys',
              encrypted: false,
            }),
          );
        socket.onmessage = ({ data }) => {
          if (channel === undefined) {
            channel = JSON.parse(data);
            socket.send('hello ö');
            socket.send(new Uint8Array([0, 1, 254, 255]));
            socket.send('x'.repeat(100_000));
            return;
          }
          echoes.push(typeof data === 'string' ? data : [...new Uint8Array(data)]);
          if (echoes.length === 3) socket.close(1000, 'done');
        };
        socket.onerror = () => reject(new Error('the socket failed'));
        socket.onclose = ({ code, reason, wasClean }) =>
          wasClean && code === 1000 ? resolve({ channel, echoes }) : reject(new Error(`closed: ${code} ${reason}`));
      }),
  );
  assert.deepEqual(Object.keys(channel), ['channel_id']);
  assert.ok(Number.isInteger(channel.channel_id) && channel.channel_id >= 0);
  assert.deepEqual(echoes, ['hello ö', [0, 1, 254, 255], 'x'.repeat(100_000)]);
});

test('compressed messages, which may refer to earlier ones, arrive as they were sent', async () => {
  const records = (seed) => Array.from({ length: 2_000 }, (_, at) => `{"at":${at},"bid":${(at * seed) % 9_973}},`).join('');
  const messages = [records(1), records(2), 'small', records(1), records(3).slice(0, 700), records(2)];
  const { extensions, echoes } = await page.evaluate(
    (messages) =>
      new Promise((resolve, reject) => {
        const socket = new WebSocket(`ws://${location.host}/echo:pushring:sys/`);
        const echoes = [];
        socket.onopen = () => messages.forEach((message) => socket.send(message));
        socket.onmessage = ({ data }) => {
          if (echoes.push(data) === messages.length) resolve({ extensions: socket.extensions, echoes });
        };
        socket.onclose = ({ code, reason }) => reject(new Error(`closed: ${code} ${reason}`));
      }),
    messages,
  );
  assert.match(extensions, /^permessage-deflate; client_no_context_takeover$/);
  assert.deepEqual(echoes, messages);
});

test('a registration with a bad token closes with 4401 and says why', async () => {
  const { code, reason } = await page.evaluate(
    () =>
      new Promise((resolve) => {
        const socket = new WebSocket(`ws://${location.host}/`);
        socket.onopen = () =>
          socket.send(JSON.stringify({ auth_token: 'x', target_process: 'echo:pushring:sys', encrypted: false }));
        socket.onclose = ({ code, reason }) => resolve({ code, reason });
      }),
  );
  assert.equal(code, 4401);
  assert.match(reason, /token/);
});

test('@kinode/client-api talks to a bound process', async () => {
  const echoed = await page.evaluate(async () => {
    const { default: KinodeApi } = await import('/client-api.js');
    return new Promise((resolve, reject) => {
      new KinodeApi({
        nodeId: 'local.os',
        processId: 'echo:pushring:sys',
        onOpen: (_event, api) => api.send({ data: { Send: { text: 'hello ö' } } }),
        onMessage: async (data, api) => {
          api._ws.close();
          // JSON goes out as a Binary message and so comes back as one.
          resolve({ isBlob: data instanceof Blob, json: JSON.parse(await data.text()) });
        },
        onError: () => reject(new Error('the socket failed')),
      });
    });
  });
  assert.deepEqual(echoed, { isBlob: true, json: { Send: { text: 'hello ö' } } });
});

test('@kinode/client-api: one client reaches another through the relay', async () => {
  const received = await page.evaluate(async () => {
    const { default: KinodeApi } = await import('/client-api.js');
    const open = (onMessage) =>
      new Promise((resolve, reject) => {
        new KinodeApi({
          nodeId: 'local.os',
          processId: 'relay:pushring:sys',
          onOpen: (_event, api) => resolve(api),
          onMessage,
          onError: () => reject(new Error('the socket failed')),
        });
      });
    let sender;
    return new Promise(async (resolve, reject) => {
      try {
        // The page behind this test chats over the same relay, in Text.
        const receiver = await open(async (data, api) => {
          if (!(data instanceof Blob)) return;
          const json = JSON.parse(await data.text());
          if (json.ask) api.send({ data: { answer: json.ask + 1 } });
        });
        sender = await open(async (data) => {
          if (!(data instanceof Blob)) return;
          receiver._ws.close();
          sender._ws.close();
          resolve(JSON.parse(await data.text()));
        });
        sender.send({ data: { ask: 41 } });
      } catch (error) {
        reject(error);
      }
    });
  });
  assert.deepEqual(received, { answer: 42 });
});
