// Both browsers' own EventSource at a hub: text of lines, JSON and bytes come; a lost connection is made again by the browser and
// what was missed comes once, in order; after a restart of the daemon the gap is told; and through nginx as it is installed, with
// its buffering, each event comes when it was published.
// Wants DAEMON, a command that starts `pushring`; CHROMIUM or FIREFOX or both; nginx in the PATH, else that part says so.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { browsers, launch } from './browsers.mjs';
import { freePort, until } from './waiting.mjs';

const TOKEN = 'a token of the test, not a secret';
const work = mkdtempSync(join(tmpdir(), 'pushring-sse-'));
const running = new Set();

function run(command, args) {
  const child = spawn(command, args, { stdio: 'ignore' });
  running.add(child);
  return child;
}

async function kill(child) {
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await ended;
  running.delete(child);
}

async function start(port, api) {
  writeFileSync(join(work, 'token'), TOKEN, { mode: 0o600 });
  const daemon = run(process.env.DAEMON, ['serve', '--hub', '--hub-open', '--hub-sse', '--listen', `127.0.0.1:${port}`, '--no-pin',
    '--control', 'off', '--admin-listen', 'off', '--api-listen', `127.0.0.1:${api}`, '--api-token-file', join(work, 'token')]);
  await until(async () => (await fetch(`http://127.0.0.1:${port}/`)).status === 404);
  return daemon;
}

/** A line to the daemon that can be cut. */
async function line(port) {
  const pairs = new Set();
  const server = net.createServer((client) => {
    const daemon = net.connect(port, '127.0.0.1');
    pairs.add(client).add(daemon);
    client.pipe(daemon).pipe(client);
    for (const socket of [client, daemon]) socket.on('error', () => {}).on('close', () => pairs.delete(socket));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    cut: () => pairs.forEach((socket) => socket.destroy()),
    end: () => {
      pairs.forEach((socket) => socket.destroy());
      server.close();
    },
  };
}

/** nginx with nothing said of buffering, nor of the version of HTTP. */
function nginx(port, daemon) {
  const config = join(work, 'nginx.conf');
  const places = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((of) => `${of}_temp_path ${work}/${of};`).join(' ');
  writeFileSync(config, `daemon off; worker_processes 1; pid ${work}/nginx.pid; error_log ${work}/nginx.log;
    events {} http { access_log off; ${places}
    server { listen 127.0.0.1:${port}; location / { proxy_pass http://127.0.0.1:${daemon}; } } }`);
  return run('nginx', ['-e', join(work, 'nginx.log'), '-c', config]);
}

function hasNginx() {
  try {
    execFileSync('nginx', ['-v'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

after(() => {
  for (const child of running) child.kill('SIGKILL');
  rmSync(work, { recursive: true });
});

for (const name of browsers) {
  test(name, { timeout: 200_000 }, async (t) => {
    const [port, api, front] = [await freePort(), await freePort(), await freePort()];
    let daemon = await start(port, api);
    const lines = await line(port);
    const browser = await launch(name);
    t.after(async () => {
      await browser.close();
      lines.end();
      for (const child of running) await kill(child);
    });

    const publish = async (payload, to = { topic: 'public.news' }) => {
      const answer = await fetch(`http://127.0.0.1:${api}/api/push`, {
        method: 'POST',
        headers: { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' },
        body: JSON.stringify({ to, outcome: true, ...payload }),
      });
      assert.equal(answer.status, 200);
      return answer.json();
    };
    const listen = async (origin) => {
      const tab = await browser.newPage();
      tab.setDefaultTimeout(30_000);
      await tab.goto(`${origin}/`);
      await tab.evaluate(() => {
        window.heard = [];
        const source = new EventSource('/hub?topic=public.news');
        for (const name of ['channel', 'message', 'binary', 'text', 'gap', 'close']) {
          source.addEventListener(name, ({ data }) => window.heard.push([name, name === 'channel' ? '' : data]));
        }
      });
      await tab.waitForFunction(() => window.heard.length === 1);
      return tab;
    };
    const heard = (tab) => tab.evaluate(() => window.heard);

    await t.test('messages come as they were published; what a lost connection missed comes once', async () => {
      const tab = await listen(lines.url);
      await publish({ text: 'two\nlines' });
      await publish({ json: { n: 1.5 } });
      await publish({ data: 'AP8=' });
      await publish({ text: 'a\rreturn' });
      await tab.waitForFunction(() => window.heard.length === 5);
      assert.deepEqual(await heard(tab), [['channel', ''], ['message', 'two\nlines'], ['message', '{"n":1.5}'], ['binary', 'AP8='], ['text', btoa('a\rreturn')]]);
      for (let round = 0; round < 2; round++) {
        lines.cut();
        for (let at = 0; at < 5; at++) await publish({ text: `${round}.${at}` });
        await tab.waitForFunction((last) => window.heard.some(([, data]) => data === last), {}, `${round}.4`);
      }
      const after = (await heard(tab)).slice(5);
      assert.deepEqual(after.filter(([name]) => name !== 'channel').map(([, data]) => data),
        [0, 1].flatMap((round) => [0, 1, 2, 3, 4].map((at) => `${round}.${at}`)));
      assert.equal(after.filter(([name]) => name === 'channel').length, 2);

      await kill(daemon);
      daemon = await start(port, api);
      await tab.waitForFunction(() => window.heard.some(([name]) => name === 'gap'));
      assert.deepEqual(JSON.parse((await heard(tab)).find(([name]) => name === 'gap')[1]), { missed: null, reason: 'elsewhere' });
      await publish({ text: 'behind it' });
      await tab.waitForFunction(() => window.heard.at(-1)[1] === 'behind it');
      await tab.close();
    });

    await t.test('through nginx as it is', { skip: hasNginx() ? false : 'there is no nginx' }, async () => {
      nginx(front, port);
      const origin = `http://127.0.0.1:${front}`;
      await until(async () => (await fetch(`${origin}/`)).status === 404);
      const tab = await listen(origin);
      for (const text of ['one', 'two', 'three']) {
        // Each must be there before the next is published: nothing waits in a buffer for more.
        await publish({ text });
        await tab.waitForFunction((text) => window.heard.at(-1)[1] === text, {}, text);
      }
      await tab.close();
    });
  });
}
