// What the scripted broker does wrong (clients/faults/broker.py), the client survives, and says what is missing.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { connect } from '../index.js';

const BROKER = ['-B', fileURLToPath(new URL('../../faults/broker.py', import.meta.url))];
const PATIENCE_MS = 30_000;
const faults = JSON.parse(execFileSync('python3', [...BROKER, '--list']));

for (const [fault, expected] of Object.entries(faults)) {
  test(fault, { timeout: PATIENCE_MS }, async () => {
    const broker = spawn('python3', [...BROKER, fault], { stdio: ['pipe', 'pipe', 'inherit'] });
    try {
      const [line] = await once(createInterface(broker.stdout), 'line');
      assert.deepEqual(await hear(JSON.parse(line).port, fault, expected), expected);
    } finally {
      broker.kill();
    }
  });
}

function hear(port, fault, expected) {
  const heard = [];
  return new Promise((resolve) => {
    const hears = (what) => {
      heard.push(what);
      if (heard.length < expected.length) return;
      resolve([...heard]);
      channel.close();
    };
    const channel = connect(`ws://127.0.0.1:${port}/`, {
      baseMs: 20,
      ackMs: 20,
      helloMs: fault === 'no_greeting' ? 1_000 : PATIENCE_MS,
      onMessage: (data) => {
        hears(data);
        if (data === 'one') channel.send('up2');
      },
      onGap: () => hears('gap'),
      onClose: () => hears('end'),
    });
    channel.send('up1');
  });
}
