// Both browsers against the TLS listener: the page comes, its WebSocket (wss://) carries messages of every form of
// length both ways, and a second visit is like the first. The certificate is signed by nobody, which the browsers are told to bear.
// Wants PUSHRING_URL, where `pushring demo --tls` listens; CHROMIUM or FIREFOX or both.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { browsers, launch } from './browsers.mjs';

const url = process.env.PUSHRING_URL;

/** Runs in the page: what comes back of messages to the demo's echo, and how the channel closes. */
async function echoes(lengths) {
  const socket = new WebSocket(`wss://${location.host}/echo:pushring:sys/`);
  socket.binaryType = 'arraybuffer';
  await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
  const got = [];
  for (const length of lengths) {
    const answer = new Promise((resolve) => (socket.onmessage = ({ data }) => resolve(data)));
    const sent = Uint8Array.from({ length }, (_, place) => place % 251);
    socket.send(sent);
    const back = new Uint8Array(await answer);
    got.push(back.length === length && back.every((byte, place) => byte === sent[place]));
  }
  const closed = new Promise((resolve) => (socket.onclose = ({ code, wasClean }) => resolve({ code, wasClean })));
  socket.close(1000);
  return { got, closed: await closed };
}

for (const name of browsers) {
  test(`${name}: page and WebSocket over TLS 1.3`, async (t) => {
    const browser = await launch(name, { acceptInsecureCerts: true });
    t.after(() => browser.close());
    for (const visit of ['first', 'second']) {
      const page = await browser.newPage();
      const answer = await page.goto(url);
      assert.equal(answer.status(), 200, visit);
      assert.equal(await page.evaluate(() => window.isSecureContext), true);
      const { got, closed } = await page.evaluate(echoes, [0, 1, 125, 126, 16384, 65536, 1000000]);
      assert.deepEqual(got, Array(7).fill(true), visit);
      assert.deepEqual(closed, { code: 1000, wasClean: true });
      if (name === 'chromium') assert.equal(answer.securityDetails().protocol(), 'TLS 1.3');
      await page.close();
    }
  });
}
