// Chromium against a node: a page that needs a login, the login page, and then the client library of the nodes with the
// cookie that it got; once on the node's own host and once in a secure subdomain, whose cookie is another one.
// Wants PUSHRING_URL, the address of examples/node_backend on loopback, and CHROMIUM, the browser.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { launch } from './chromium.mjs';

const { port } = new URL(process.env.PUSHRING_URL);
const clientApi = fileURLToPath(import.meta.resolve('@kinode/client-api'));
const app = 'wsecho:wsecho:sys';
const password = 'correct horse';

let browser;

before(async () => {
  browser = await launch();
});

after(() => browser?.close());

/** A tab without cookies, in which the nodes' library is a module of the page's own origin. */
async function newTab() {
  const context = await browser.newContext();
  const tab = await context.newPage();
  tab.setDefaultTimeout(30_000);
  await tab.route('**/client-api.js', (route) => route.fulfill({ path: clientApi, contentType: 'text/javascript' }));
  return tab;
}

/** Sends JSON through the library and resolves to what comes back, or to null where the socket does not open. */
function echo(tab, path) {
  return tab.evaluate(
    async ({ app, path }) => {
      const { default: KinodeApi } = await import('/client-api.js');
      return new Promise((resolve) => {
        const options = path === undefined ? {} : { uri: `ws://${location.host}/${app}${path}` };
        new KinodeApi({
          nodeId: 'fake.os',
          processId: app,
          ...options,
          onOpen: (_event, api) => api.send({ data: { Send: { text: 'hello ö' } } }),
          onMessage: async (data, api) => {
            api._ws.close();
            resolve(JSON.parse(await data.text()));
          },
          onError: () => resolve(null),
        });
      });
    },
    { app, path },
  );
}

/** Opens a page that needs a login, gives a wrong password, then the right one. */
async function logIn(tab, url, isLoggedIn) {
  await tab.goto(url);
  await tab.fill('#password', 'incorrect horse');
  await tab.click('#button');
  await tab.waitForFunction(() => document.getElementById('problem').textContent === 'That is not the password.');
  await tab.fill('#password', password);
  await tab.click('#button');
  await tab.waitForFunction(isLoggedIn);
}

test('a login opens what is authenticated, on the host of the node', async () => {
  const tab = await newTab();
  const url = `http://localhost:${port}/${app}/authstatic`;
  await tab.goto(`http://localhost:${port}/${app}/static`);
  assert.equal(await echo(tab, '/authed'), null, 'without a cookie it is shut');
  assert.deepEqual(await echo(tab), { Send: { text: 'hello ö' } }, 'what is open to all is open');
  await logIn(tab, url, () => document.querySelector('h1')?.textContent === 'authed');
  const [cookie, ...others] = await tab.context().cookies();
  assert.deepEqual(others, []);
  assert.equal(cookie.name, 'hyperware-auth_fake.os');
  assert.ok(cookie.httpOnly && cookie.sameSite === 'Lax' && cookie.path === '/');
  assert.deepEqual(await echo(tab, '/authed'), { Send: { text: 'hello ö' } });
  assert.equal(await echo(tab, '/wssecure'), null, 'a secure subdomain is another host');
  await tab.context().close();
});

test('a login opens what is secure, in the subdomain of its package', async () => {
  const tab = await newTab();
  // Asked for elsewhere, the page sends there.
  await logIn(tab, `http://localhost:${port}/${app}/secure`, () => document.body.textContent.includes('"path":"/secure"'));
  assert.equal(new URL(tab.url()).host, `wsecho-sys.localhost:${port}`);
  const names = (await tab.context().cookies()).map(({ name }) => name);
  assert.deepEqual(names.filter((name) => name.startsWith('hyperware-auth_')), [`hyperware-auth_fake.os@${app}`]);
  assert.deepEqual(await echo(tab, '/wssecure'), { Send: { text: 'hello ö' } });
  assert.equal(await echo(tab, '/authed'), null, 'its token is for the subdomain alone');
  await tab.context().close();
});

test('a page of another site does not get in with the cookie', async () => {
  const tab = await newTab();
  await logIn(tab, `http://localhost:${port}/${app}/authstatic`, () => document.querySelector('h1') !== null);
  await tab.route('http://evil.localhost/**', (route) => route.fulfill({ body: '<p>evil</p>', contentType: 'text/html' }));
  await tab.goto('http://evil.localhost/');
  const opened = await tab.evaluate(
    ({ port, app }) =>
      new Promise((resolve) => {
        const socket = new WebSocket(`ws://localhost:${port}/${app}/authed`);
        socket.onopen = () => resolve(true);
        socket.onerror = () => resolve(false);
      }),
    { port, app },
  );
  assert.equal(opened, false);
  await tab.context().close();
});
