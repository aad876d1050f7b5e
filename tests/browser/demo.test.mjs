// Both browsers on the demo's page: what a visitor who cannot see it, or not well, is told (axe, in both themes); a restart
// of the daemon; a tab that closes without a word; more tabs than fit.
// Wants DEMO, a command that starts the demo at the address PUSHRING_URL; and CHROMIUM or FIREFOX or both. SCREENSHOT, a
// file, keeps what Chromium shows in the light theme.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { browsers, launch } from './browsers.mjs';

const url = process.env.PUSHRING_URL;
const axe = readFileSync(fileURLToPath(import.meta.resolve('axe-core/axe.min.js')), 'utf8');

let daemon;

/** Starts the demo, with a secret of its own as ever, and resolves once it listens. */
async function start() {
  daemon = spawn(process.env.DEMO, ['demo', '--listen', new URL(url).host, '--no-pin', '--control', 'off'], { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise((resolve, reject) => {
    daemon.stdout.once('data', resolve);
    daemon.once('exit', () => reject(new Error('the demo did not start')));
  });
}

async function stop() {
  const ended = new Promise((resolve) => daemon.once('exit', resolve));
  daemon.kill('SIGKILL');
  await ended;
}

after(() => daemon?.kill('SIGKILL'));

for (const name of browsers) {
  test(name, { timeout: 400_000 }, async (t) => {
    await start();
    const browser = await launch(name);
    t.after(async () => {
      await browser.close();
      await stop();
    });

    const open = async (from = browser) => {
      const tab = await from.newPage();
      tab.setDefaultTimeout(30_000);
      await tab.goto(url);
      await tab.waitForFunction(() => document.querySelectorAll('#channels .open').length === 3);
      return tab;
    };

    for (const theme of ['light', 'dark']) {
      await t.test(`${theme}: axe finds nothing serious`, async () => {
        const themed = await launch(name, theme);
        try {
          const [tab] = [await open(themed), await open(themed)];
          await tab.bringToFront();
          if (name === 'chromium') await tab.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: theme }]);
          assert.ok(await tab.evaluate((theme) => matchMedia(`(prefers-color-scheme: ${theme})`).matches, theme));
          await tab.waitForSelector('#tabs button');
          await tab.click('#tabs button');
          if (theme === 'light' && name === 'chromium' && process.env.SCREENSHOT) {
            await tab.setViewport({ width: 1200, height: 800 });
            await tab.click('[data-window="16"]');
            await tab.click('#everybody');
            await tab.type('#text', 'hello, every tab');
            await tab.keyboard.press('Enter');
            await new Promise((resolve) => setTimeout(resolve, 10_000));
            await tab.screenshot({ path: process.env.SCREENSHOT });
            await tab.click('[data-window="0"]');
            await tab.click('#tabs button');
          }
          await tab.evaluate(axe);
          const found = await tab.evaluate(async () => (await window.axe.run()).violations);
          const serious = found.filter(({ impact }) => impact === 'serious' || impact === 'critical');
          assert.deepEqual(serious.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]), []);
        } finally {
          await themed.close();
        }
      });
    }

    await t.test('a message to a tab that closed without a word goes to nobody else', async () => {
      const [tab, gone, other] = [await open(), await open(), await open()];
      const number = await gone.evaluate(() => unicast.id);
      // No pagehide: as if its browser had been killed.
      await gone.evaluate(() => addEventListener('pagehide', (event) => event.stopImmediatePropagation(), { capture: true }));
      await tab.bringToFront();
      await tab.waitForFunction((id) => [...document.querySelectorAll('#tabs button')].some((b) => b.textContent.includes(`#${id}`)), {}, number);
      await tab.evaluate((id) => [...document.querySelectorAll('#tabs button')].find((b) => b.textContent.includes(`#${id}`)).click(), number);
      await gone.evaluate(() => relay.send = () => true);
      await gone.close();
      await tab.type('#text', 'for you alone');
      await tab.keyboard.press('Enter');
      await tab.waitForFunction(() => document.getElementById('messages').textContent.includes('did not reach'));
      await tab.type('#text', 'still for you alone');
      await tab.keyboard.press('Enter');
      await tab.waitForFunction(() => document.getElementById('messages').textContent.includes('Not sent'));
      assert.ok(!(await other.evaluate(() => document.getElementById('messages').textContent)).includes('alone'));
      await tab.click('#everybody');
      await tab.evaluate(() => { document.getElementById('text').value = ''; });
      await tab.type('#text', 'for everybody');
      await tab.keyboard.press('Enter');
      await other.waitForFunction(() => document.getElementById('messages').textContent.includes('for everybody'));
      await Promise.all([tab.close(), other.close()]);
    });

    await t.test('twelve tabs leave the field to write in where it is', async () => {
      const tab = await open();
      await tab.bringToFront();
      await tab.setViewport({ width: 1280, height: 720 });
      const bottom = () => tab.evaluate(() => document.getElementById('text').getBoundingClientRect().bottom);
      const before = await bottom();
      assert.ok(before <= 720, `${before}`);
      await tab.evaluate(() => {
        for (let at = 0; at < 12; at++) tabs.set(`t${at}`, { name: `tab ${at}`, id: at, seen: Date.now() });
        showTabs();
        for (let at = 0; at < 60; at++) say('somebody', `message ${at}`, '');
      });
      assert.equal(await bottom(), before);
      await tab.close();
    });

    await t.test('the page comes back after a restart', async () => {
      const tab = await open();
      await stop();
      await tab.waitForFunction(() => document.querySelectorAll('#channels .closed').length === 3);
      await start();
      await tab.waitForFunction(() => document.querySelectorAll('#channels .open').length === 3);
      assert.equal(await tab.evaluate(() => document.getElementById('trouble').hidden), true);
    });
  });
}
