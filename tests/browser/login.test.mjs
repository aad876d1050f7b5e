// Both browsers log in to a node: on `localhost` and on a domain, where the page was reached by a link from another site,
// once and not again when the app is opened anew; and which framed widgets find their owner logged in.
// Wants PUSHRING_URL and PUSHRING_DOMAIN_URL, two addresses of examples/node_backend, the latter answering for any host; and
// CHROMIUM or FIREFOX or both.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { browsers, launch } from './browsers.mjs';

const app = 'wsecho:wsecho:sys';
const password = 'correct horse';
const local = `http://localhost:${new URL(process.env.PUSHRING_URL).port}`;
const domain = `http://node.test:${new URL(process.env.PUSHRING_DOMAIN_URL).port}`;

/** A site of somebody else, with a link or a frame to wherever it is asked for. */
const elsewhere = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://x');
  const to = searchParams.get('to');
  const page = pathname === '/frame' ? `<iframe src="${to}"></iframe>` : `<a id="link" href="${to}">to the node</a>`;
  response.setHeader('content-type', 'text/html').end(`<!doctype html>${page}`);
});
let foreign;

before(async () => {
  await new Promise((resolve) => elsewhere.listen(0, '127.0.0.1', resolve));
  foreign = `http://127.0.0.1:${elsewhere.address().port}`;
});

after(() => elsewhere.close());

for (const name of browsers) {
  test(name, { timeout: 400_000 }, async (t) => {
    const browser = await launch(name);
    t.after(() => browser.close());

    /** Runs a part with cookies of its own. */
    const part = (title, run) =>
      t.test(title, async () => {
        const context = await browser.createBrowserContext();
        try {
          await run(() => newTab(context));
        } finally {
          await context.close();
        }
      });

    for (const node of [local, domain]) {
      const open = `${node}/${app}/authstatic`;
      const secure = `${node}/${app}/secure`;

      await part(`${node}: once logged in, an app opens without a password`, async (tab) => {
        const first = await tab();
        await first.goto(secure);
        await logIn(first, 'secure');
        assert.ok(first.url().startsWith(secure.replace('://', '://wsecho-sys.')), first.url());
        await first.close();
        const again = await tab();
        await again.goto(secure);
        assert.equal(await shows(again), 'secure');
        await again.goto(open);
        // A cookie of the node's, on a domain, opens its secure subdomains; on localhost each has its own.
        if ((await shows(again)) === 'login') await logIn(again, 'open');
        await again.close();
        const third = await tab();
        await third.goto(open);
        assert.equal(await shows(third), 'open');
      });

      await part(`${node}: a link from another site finds its owner logged in`, async (tab) => {
        const first = await tab();
        for (const [url, what] of [[open, 'open'], [secure, 'secure']]) {
          await first.goto(url);
          if ((await shows(first)) === 'login') await logIn(first, what);
          const page = await tab();
          await follow(page, url);
          assert.equal(await shows(page), what);
        }
      });

      await part(`${node}: who comes by a link from another site gets in with the password`, async (tab) => {
        for (const [url, what] of [[open, 'open'], [secure, 'secure']]) {
          const page = await tab();
          await follow(page, url);
          if ((await shows(page)) === 'login') await logIn(page, what);
          assert.equal(await shows(page), what);
        }
      });
    }

    await part('a framed widget of a secure subdomain: logged in on a domain; asked for the password on localhost', async (tab) => {
      const page = await tab();
      for (const [node, expected] of [[domain, 'secure'], [local, 'login']]) {
        await page.goto(`${node}/${app}/secure`);
        if ((await shows(page)) === 'login') await logIn(page, 'secure');
        await page.goto(`${node}/${app}/static`);
        assert.equal(await framed(page, `${node.replace('://', '://wsecho-sys.')}/${app}/secure`), expected, node);
      }
    });

    await part('a page of another site frames no login page', async (tab) => {
      const page = await tab();
      await page.goto(`${foreign}/frame?to=${encodeURIComponent(`${local}/login`)}`);
      assert.equal(await framed(page), 'nothing');
    });
  });
}

async function newTab(context) {
  const tab = await context.newPage();
  tab.setDefaultTimeout(30_000);
  return tab;
}

/** Follows a link of the other site. */
async function follow(tab, to) {
  await tab.bringToFront();
  await tab.goto(`${foreign}/?to=${encodeURIComponent(to)}`);
  await Promise.all([tab.waitForNavigation(), tab.click('#link')]);
}

/** What a page or frame shows once it has settled: the login page may go on by itself. */
async function shows(frame, patience = 3000) {
  const until = Date.now() + patience;
  let shown;
  do {
    shown = await frame.evaluate(looksLike).catch(() => 'changing');
    if (shown === 'open' || shown === 'secure') return shown;
    await new Promise((resolve) => setTimeout(resolve, 100));
  } while (Date.now() < until);
  return shown;
}

function looksLike() {
  if (document.getElementById('password')) return 'login';
  if (document.querySelector('h1')?.textContent === 'authed') return 'open';
  return document.body?.textContent.includes('"path":"/secure"') ? 'secure' : 'nothing';
}

async function logIn(tab, what) {
  // Tabs in the background are drawn by no browser, and what is not drawn cannot be clicked.
  await tab.bringToFront();
  await tab.type('#password', password);
  await tab.click('#button');
  assert.equal(await shows(tab, 20_000), what);
}

/** What a frame in the page shows: one of `url` that is added, or the one that is there. */
async function framed(page, url) {
  if (url !== undefined) {
    await page.evaluate((url) => {
      const frame = document.createElement('iframe');
      frame.src = url;
      document.body.append(frame);
    }, url);
  }
  await page.waitForSelector('iframe');
  const frame = await (await page.$('iframe')).contentFrame();
  return shows(frame);
}
