// Both browsers on the demo's page: what a visitor who cannot see it, or not well, is told (axe, in both themes, on a phone);
// receivers that stop reading; a stream that is cut, a network that is gone for a while, a restart of the daemon, a drain to
// another one: each time the page tells what it has lost, or that it began anew; tabs that share a room.
// Wants DEMO, a command that starts the demo at the address PUSHRING_URL; and CHROMIUM or FIREFOX or both. SCREENSHOT, a
// directory, keeps what Chromium shows in both themes (demo-light.png, demo-dark.png).

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { browsers, launch } from './browsers.mjs';
import { freePort } from './waiting.mjs';

const url = process.env.PUSHRING_URL;
const pictures = process.env.SCREENSHOT;
const axe = readFileSync(fileURLToPath(import.meta.resolve('axe-core/axe.min.js')), 'utf8');
const work = mkdtempSync(join(tmpdir(), 'pushring-demo-'));
const CHANNELS = 5;
const RECEIVERS = pictures ? 1000 : 200;
const WINDOW_S = 8;

const running = new Set();

/** Starts the demo, with a secret of its own as ever, and resolves once it listens. */
async function start(host = new URL(url).host, flags = []) {
  const control = join(work, `control-${new URL(`http://${host}`).port}`);
  const daemon = spawn(process.env.DEMO, ['demo', '--listen', host, '--no-pin', '--control', control, '--receivers', RECEIVERS,
    '--resume-window', `${WINDOW_S}s`, ...flags], { stdio: ['ignore', 'pipe', 'ignore'] });
  running.add(daemon);
  await new Promise((resolve, reject) => {
    daemon.stdout.once('data', resolve);
    daemon.once('exit', () => reject(new Error('the demo did not start')));
  });
  return { daemon, control };
}

async function stop({ daemon }) {
  const ended = new Promise((resolve) => daemon.once('exit', resolve));
  daemon.kill('SIGKILL');
  await ended;
  running.delete(daemon);
}

/** A network between browser and daemons: it can lose everything for a while, and lead elsewhere. */
async function network(port) {
  const pairs = new Set();
  const lines = { port, isDown: false };
  const server = net.createServer((client) => {
    const daemon = net.connect(lines.port, '127.0.0.1');
    const pair = [client, daemon];
    pairs.add(pair);
    for (const [from, to] of [pair, [daemon, client]]) {
      // What is said while the network is down comes nowhere, and nobody is told.
      from.on('data', (bytes) => lines.isDown || to.write(bytes));
      from.on('error', () => {}).on('close', () => {
        pairs.delete(pair);
        if (!lines.isDown) to.destroy();
      });
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  lines.url = `http://127.0.0.1:${server.address().port}`;
  lines.cut = () => pairs.forEach((pair) => pair.forEach((socket) => socket.destroy()));
  lines.end = () => {
    lines.cut();
    server.close();
  };
  return lines;
}

after(() => {
  for (const daemon of running) daemon.kill('SIGKILL');
  rmSync(work, { recursive: true });
});

for (const name of browsers) {
  test(name, { timeout: 600_000 }, async (t) => {
    let daemon = await start();
    const browser = await launch(name);
    t.after(async () => {
      await browser.close();
      await stop(daemon);
    });

    const areOpen = (count) => document.querySelectorAll('#channels .open').length === count;
    const open = async (from = browser, at = url) => {
      const tab = await from.newPage();
      tab.setDefaultTimeout(60_000);
      await tab.goto(at);
      // A page that nobody sees has no stage.
      await tab.bringToFront();
      await tab.waitForFunction(areOpen, {}, CHANNELS);
      return tab;
    };
    const counts = (tab) => tab.evaluate(() => Object.fromEntries(
      ['words', 'missing', 'wrong'].map((id) => [id, Number(document.getElementById(id).textContent.replace(/\D/g, ''))])));
    const moreWords = async (tab, words = 10) => {
      const before = (await counts(tab)).words;
      await tab.waitForFunction((least) => Number(document.getElementById('words').textContent.replace(/\D/g, '')) >= least, {}, before + words);
    };
    const says = (tab, id) => tab.$eval(`#${id}`, (element) => element.textContent);
    const until = (tab, id, words) => tab.waitForFunction(
      (id, words) => document.getElementById(id).textContent.includes(words), {}, id, words);
    const serious = async (tab) => {
      await tab.evaluate(axe);
      const found = await tab.evaluate(async () => (await window.axe.run()).violations);
      return found.filter(({ impact }) => impact === 'serious' || impact === 'critical')
        .map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]);
    };

    for (const theme of ['light', 'dark']) {
      await t.test(`${theme}: axe finds nothing serious, and a phone shows it whole`, async () => {
        const themed = await launch(name, { theme });
        try {
          const [tab] = [await open(themed), await open(themed)];
          await tab.bringToFront();
          if (name === 'chromium') await tab.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: theme }]);
          assert.ok(await tab.evaluate((theme) => matchMedia(`(prefers-color-scheme: ${theme})`).matches, theme));
          await tab.waitForSelector('#tabs button');
          await tab.click('#tabs button');
          if (name === 'chromium' && pictures) await picture(tab, join(pictures, `demo-${theme}.png`));
          await tab.waitForFunction((all) => document.getElementById('count-o').textContent === all, {}, RECEIVERS.toLocaleString('en'));
          await tab.click('[data-stall="10"]');
          await until(tab, 'count-s', '10');
          assert.deepEqual(await serious(tab), []);
          assert.match(await tab.$eval('#seats', (seats) => seats.ariaLabel ?? seats.getAttribute('aria-label')), /10 have stopped reading/);
          await tab.setViewport({ width: 360, height: 740 });
          const { wide, seen } = await tab.evaluate(() => ({ wide: document.documentElement.scrollWidth, seen: innerWidth }));
          assert.ok(wide <= seen, `${wide} of ${seen} pixels`);
          assert.deepEqual(await serious(tab), []);
        } finally {
          await themed.close();
        }
      });
    }

    await t.test('receivers that stop reading are closed, the others and this page go on, and all come back', async () => {
      const tab = await open();
      await tab.bringToFront();
      await until(tab, 'stage-says', 'All read');
      await tab.click('[data-stall="10"]');
      await until(tab, 'stage-says', '10 did not keep up');
      assert.equal(await says(tab, 'count-x'), '10');
      assert.equal(await says(tab, 'count-o'), String(RECEIVERS - 10));
      assert.ok(Number(await says(tab, 'mine')) > 0);
      assert.match(await says(tab, 'p99'), /ms$/);
      await tab.click('[data-stall="0"]');
      await tab.waitForFunction((all) => document.getElementById('count-o').textContent === all, {}, String(RECEIVERS));
      await tab.click('[data-policy="conflate"]');
      await tab.click('[data-stall="10"]');
      await until(tab, 'outcome', 'replaced an older one');
      assert.equal(await says(tab, 'count-x'), '0');
      await tab.click('[data-stall="0"]');
      await until(tab, 'stage-says', 'has skipped');
      await tab.close();
    });

    await t.test('a stream that is cut goes on where it was; away for too long, the page tells how much is lost', async () => {
      const tab = await open();
      await tab.bringToFront();
      await moreWords(tab);
      await tab.click('#cut');
      await until(tab, 'tokens-say', 'Cut.');
      const atCut = await counts(tab);
      await tab.waitForFunction(() => /\(\d s left\)/.test(document.getElementById('cut').textContent) && !document.getElementById('cut').textContent.includes('(8 s'));
      assert.deepEqual(await counts(tab), atCut, 'something came through the cut');
      await tab.click('#cut');
      await until(tab, 'tokens-say', 'no word is missing');
      await tab.waitForSelector('#stream .replayed');
      await moreWords(tab);
      const { missing, wrong } = await counts(tab);
      assert.deepEqual({ missing, wrong }, { missing: 0, wrong: 0 });

      await tab.click('#cut');
      await until(tab, 'cut', 'too late');
      // The daemon's own clock is the one that counts.
      await new Promise((resolve) => setTimeout(resolve, 1000));
      await tab.click('#cut');
      await until(tab, 'tokens-say', 'are missing');
      assert.match(await says(tab, 'tokens-say'), /^Exactly \d+ words are missing: you were away .* This is a new stream/);
      await moreWords(tab);
      const after = await counts(tab);
      assert.ok(after.missing > 0 && after.wrong === 0, JSON.stringify(after));
      await tab.close();
    });

    await t.test('a network that is gone without a word, as in a sleep: nothing is missing', async () => {
      const lines = await network(Number(new URL(url).port));
      const tab = await open(browser, lines.url);
      await moreWords(tab);
      lines.isDown = true;
      await tab.evaluate(() => dispatchEvent(new Event('offline')));
      await until(tab, 'trouble', 'lost');
      await new Promise((resolve) => setTimeout(resolve, 500));
      lines.isDown = false;
      await tab.evaluate(() => dispatchEvent(new Event('online')));
      await tab.waitForFunction(areOpen, {}, CHANNELS);
      await until(tab, 'tokens-say', 'No word is missing');
      await moreWords(tab);
      const { missing, wrong } = await counts(tab);
      assert.deepEqual({ missing, wrong }, { missing: 0, wrong: 0 });
      await tab.close();
      lines.end();
    });

    await t.test('a drain to another daemon: the page goes there, and tells that it began anew', async () => {
      const ports = [await freePort(), await freePort()];
      const [first, second] = [await start(`127.0.0.1:${ports[0]}`, ['--drain-over', '1s', '--drain-grace', '0s']), await start(`127.0.0.1:${ports[1]}`)];
      const lines = await network(ports[0]);
      const tab = await open(browser, lines.url);
      await moreWords(tab);
      lines.port = ports[1];
      const ended = new Promise((resolve) => first.daemon.once('exit', resolve));
      execFileSync(process.env.DEMO, ['drain', '--control', first.control]);
      await until(tab, 'tokens-say', 'new stream');
      await ended;
      await tab.waitForFunction(areOpen, {}, CHANNELS);
      await until(tab, 'messages', 'came back on a new channel');
      await moreWords(tab);
      assert.equal((await counts(tab)).wrong, 0);
      await tab.close();
      lines.end();
      running.delete(first.daemon);
      await stop(second);
    });

    await t.test('a message to a tab that closed without a word goes to nobody else', async () => {
      const [tab, gone, other] = [await open(), await open(), await open()];
      const number = await gone.evaluate(async () => (await import('/demo/room.js')).unicast.id);
      // No pagehide: as if its browser had been killed.
      await gone.evaluate(() => addEventListener('pagehide', (event) => event.stopImmediatePropagation(), { capture: true }));
      await tab.bringToFront();
      await tab.waitForFunction((id) => [...document.querySelectorAll('#tabs button')].some((b) => b.textContent.includes(`#${id}`)), {}, number);
      await tab.evaluate((id) => [...document.querySelectorAll('#tabs button')].find((b) => b.textContent.includes(`#${id}`)).click(), number);
      await gone.evaluate(async () => { (await import('/demo/room.js')).relay.send = () => true; });
      await gone.close();
      await tab.type('#text', 'for you alone');
      await tab.keyboard.press('Enter');
      await until(tab, 'messages', 'did not reach');
      await tab.type('#text', 'still for you alone');
      await tab.keyboard.press('Enter');
      await until(tab, 'messages', 'Not sent');
      assert.ok(!(await says(other, 'messages')).includes('alone'));
      await tab.click('#everybody');
      await tab.evaluate(() => { document.getElementById('text').value = ''; });
      await tab.type('#text', 'for everybody');
      await tab.keyboard.press('Enter');
      await until(other, 'messages', 'for everybody');
      await Promise.all([tab.close(), other.close()]);
    });

    await t.test('twelve tabs leave the field to write in where it is', async () => {
      const tab = await open();
      await tab.bringToFront();
      await tab.setViewport({ width: 1280, height: 720 });
      const place = () => tab.evaluate(() => {
        const field = document.getElementById('text').getBoundingClientRect();
        return [field.bottom - document.querySelector('.chat').getBoundingClientRect().top, document.querySelector('.chat').clientHeight];
      });
      const before = await place();
      await tab.evaluate(async () => {
        const { say, showTabs, tabs } = await import('/demo/room.js');
        for (let at = 0; at < 12; at++) tabs.set(`t${at}`, { name: `tab ${at}`, id: at, seen: Date.now() });
        showTabs();
        for (let at = 0; at < 60; at++) say('somebody', `message ${at}`, '');
      });
      assert.deepEqual(await place(), before);
      await tab.close();
    });

    await t.test('the page comes back after a restart, and tells that it began anew', async () => {
      const tab = await open();
      await moreWords(tab);
      await stop(daemon);
      await tab.waitForFunction(() => document.querySelectorAll('#channels .closed').length > 0 && !document.getElementById('trouble').hidden);
      daemon = await start();
      await tab.waitForFunction(areOpen, {}, CHANNELS);
      assert.equal(await tab.evaluate(() => document.getElementById('trouble').hidden), true);
      await until(tab, 'tokens-say', 'started anew');
      await until(tab, 'messages', 'came back on a new channel');
      await moreWords(tab);
      assert.equal((await counts(tab)).wrong, 0);
      await tab.close();
    });
  });
}

/** What the README shows: some have stopped reading, the stream was cut and came back, a tab said something. */
async function picture(tab, file) {
  await tab.setViewport({ width: 1200, height: 960 });
  await tab.waitForFunction(() => document.getElementById('count-o').textContent === '1,000');
  await new Promise((resolve) => setTimeout(resolve, 12_000));
  await tab.click('#everybody');
  await tab.type('#text', 'hello, every tab');
  await tab.keyboard.press('Enter');
  await tab.click('[data-stall="100"]');
  await tab.waitForFunction(() => document.getElementById('count-x').textContent === '100');
  await new Promise((resolve) => setTimeout(resolve, 9_000));
  await tab.click('#cut');
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  await tab.click('#cut');
  await new Promise((resolve) => setTimeout(resolve, 1_500));
  await tab.evaluate(() => window.scrollTo(0, 0));
  await tab.screenshot({ path: file });
  await tab.click('[data-stall="0"]');
  await tab.click('#tabs button');
}
