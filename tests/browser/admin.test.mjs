// Both browsers on the admin page: what an operator sees, closes and reads again, in both themes and on a phone; axe finds
// nothing serious; a page of another origin gets nothing.
// Wants DAEMON, a command that starts `pushring`, and CHROMIUM or FIREFOX or both. SCREENSHOTS, a directory, keeps what
// Chromium shows: admin.png, admin-dark.png, and admin-phone.png, 360 pixels wide.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { browsers, launch } from './browsers.mjs';
import { until } from './waiting.mjs';

const TOKEN = 'a token of the test, not a secret';
const PATH = '/room:python:sys/';
const axe = readFileSync(fileURLToPath(import.meta.resolve('axe-core/axe.min.js')), 'utf8');
const work = mkdtempSync(join(tmpdir(), 'pushring-admin-'));
const running = [];
let listen;
let admin;

function start(command, args) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  running.push(child);
  return child;
}

/** Two ports that are free now. */
async function freePorts() {
  const servers = [createServer(), createServer()];
  const ports = await Promise.all(servers.map((server) => new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve(server.address().port));
  })));
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

before(async () => {
  const [port, adminPort] = await freePorts();
  listen = `http://127.0.0.1:${port}`;
  admin = `http://127.0.0.1:${adminPort}`;
  writeFileSync(join(work, 'token'), TOKEN, { mode: 0o600 });
  writeFileSync(join(work, 'pushring.toml'), '');
  start(process.env.DAEMON, ['serve', '--config', join(work, 'pushring.toml'), '--listen', `127.0.0.1:${port}`, '--no-pin',
    '--link', join(work, 'link'), '--control', join(work, 'control'), '--admin-listen', `127.0.0.1:${adminPort}`,
    '--admin-token-file', join(work, 'token'), '--shards', '2', '--ready-needs', 'link']);
  await until(async () => (await fetch(`${admin}/livez`)).ok);
  assert.equal((await fetch(`${admin}/readyz`)).status, 503);
  start('python3', [fileURLToPath(new URL('../../examples/link_client.py', import.meta.url)), join(work, 'link')]);
  await until(async () => (await fetch(`${admin}/readyz`)).ok);
});

after(() => {
  for (const child of running) child.kill('SIGKILL');
  rmSync(work, { recursive: true });
});

for (const name of browsers) {
  test(name, { timeout: 400_000 }, async (t) => {
    const themed = async (theme) => {
      const browser = await launch(name, { theme });
      const tab = await browser.newPage();
      tab.setDefaultTimeout(30_000);
      tab.on('dialog', (dialog) => dialog.accept());
      if (name === 'chromium') await tab.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: theme }]);
      await tab.setViewport({ width: 1200, height: 1000 });
      await tab.goto(admin);
      return { browser, tab };
    };
    const enter = async (tab) => {
      await tab.type('#token', TOKEN);
      await tab.keyboard.press('Enter');
      await tab.waitForSelector('#page:not([hidden])');
    };
    const serious = async (tab) => {
      await tab.evaluate(axe);
      const found = await tab.evaluate(async () => (await window.axe.run()).violations);
      return found.filter(({ impact }) => impact === 'serious' || impact === 'critical')
        .map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]);
    };
    const clients = async (browser, count) => {
      const tab = await browser.newPage();
      await tab.goto(`${listen}/`);
      await tab.evaluate((path, count) => {
        window.ended = 0;
        window.sockets = Array.from({ length: count }, () => {
          const socket = new WebSocket(path);
          socket.onclose = () => { window.ended += 1; };
          return socket;
        });
        // Something to see: everybody hears everybody.
        setInterval(() => window.sockets.filter((s) => s.readyState === 1).forEach((s) => s.send('all:hello')), 100);
        return Promise.all(window.sockets.map((socket) => new Promise((resolve) => { socket.onopen = resolve; })));
      }, listen.replace('http', 'ws') + PATH, count);
      return tab;
    };

    for (const theme of ['light', 'dark']) {
      await t.test(`${theme}: seen, on a phone too, and axe finds nothing serious`, async () => {
        const { browser, tab } = await themed(theme);
        try {
          assert.ok(await tab.evaluate((theme) => matchMedia(`(prefers-color-scheme: ${theme})`).matches, theme));
          assert.deepEqual(await serious(tab), []);
          await tab.type('#token', 'sixteen bytes of nothing');
          await tab.keyboard.press('Enter');
          await tab.waitForFunction(() => document.getElementById('trouble').textContent !== '');
          await tab.$eval('#token', (input) => { input.value = ''; });
          const others = await clients(browser, 22);
          await others.evaluate(() => window.sockets.slice(0, 2).forEach((socket) => socket.close(4001, 'has left')));
          await tab.bringToFront();
          await enter(tab);
          await tab.waitForFunction(() => document.getElementById('processes').textContent.includes('room:python:sys20'));
          assert.equal(await tab.$eval('#state', (state) => state.textContent), 'ready');
          assert.deepEqual(await serious(tab), []);
          await tab.waitForFunction(() => document.getElementById('ends').textContent.includes('has left'));
          // Rates, and what is held for the process.
          await tab.waitForFunction(() => /pushed \/s[1-9]/.test(document.getElementById('figures').textContent));
          await tab.waitForFunction(() => /room:python:sys20[0-9.,]+ (B|KiB)/.test(document.getElementById('processes').textContent));
          // The daemon is one for all browsers, and a test of the one before has had it read its settings again.
          assert.match(await tab.$eval('#settings', (said) => said.textContent), /at the start|read again/);
          const keep = async (file) => {
            if (name !== 'chromium' || !process.env.SCREENSHOTS) return;
            await tab.screenshot({ path: join(process.env.SCREENSHOTS, file), fullPage: true });
          };
          await keep(theme === 'light' ? 'admin.png' : 'admin-dark.png');
          await tab.setViewport({ width: 360, height: 740 });
          const { wide, seen } = await tab.evaluate(() => ({ wide: document.documentElement.scrollWidth, seen: innerWidth }));
          assert.ok(wide <= seen, `${wide} of ${seen} pixels`);
          if (theme === 'dark') await keep('admin-phone.png');
          await others.close();
        } finally {
          await browser.close();
        }
      });
    }

    await t.test('closes a channel, reads the settings again, forgets its token', async () => {
      const { browser, tab } = await themed('light');
      try {
        const others = await clients(browser, 3);
        await tab.bringToFront();
        await enter(tab);
        const listed = async () => {
          const answer = await fetch(`${admin}/channels?limit=100`, { headers: { authorization: `Bearer ${TOKEN}` } });
          return (await answer.json()).channels;
        };
        // Those of the browser before may not have ended yet.
        let channels = await listed();
        while (channels.length !== 3) channels = await listed();
        const [{ channel }] = channels;
        await tab.type('#channel', String(channel));
        await tab.click('#close button');
        await others.waitForFunction(() => window.ended === 1);
        await tab.waitForFunction(() => document.getElementById('ends').textContent.includes('1008'));
        writeFileSync(join(work, 'pushring.toml'), `message_bytes_max = "${name.length}KiB"\n`);
        await tab.click('#reload button');
        await tab.waitForFunction(() => document.getElementById('said').textContent.includes('message_bytes_max'));
        await tab.waitForFunction(() => /read again at .*message_bytes_max/.test(document.getElementById('settings').textContent));
        await tab.click('#leave button');
        await tab.waitForSelector('#login:not([hidden])');
        assert.equal(await tab.evaluate(() => sessionStorage.length), 0);
      } finally {
        await browser.close();
      }
    });

    await t.test('a page of another origin reads nothing and changes nothing', async () => {
      const { browser, tab } = await themed('light');
      try {
        await tab.goto(`${listen}/`);
        const tried = await tab.evaluate(async (admin, token) => {
          const outcome = async (path, request) => {
            try { return (await fetch(admin + path, request)).status; } catch { return 'refused'; }
          };
          return [
            await outcome('/stats.json', { headers: { authorization: `Bearer ${token}` } }),
            await outcome('/reload', { method: 'POST', headers: { 'content-type': 'text/plain' }, body: '{}' }),
          ];
        }, admin, TOKEN);
        assert.deepEqual(tried, ['refused', 'refused']);
      } finally {
        await browser.close();
      }
    });
  });
}
