// What tests that start programs wait for: a port that is free, and a condition that comes true.

import assert from 'node:assert/strict';
import net from 'node:net';

export async function freePort() {
  const server = net.createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Within 30 s. */
export async function until(condition) {
  for (let tries = 0; tries < 600; tries++) {
    if (await condition().catch(() => false)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(`never: ${condition}`);
}
