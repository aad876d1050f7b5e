// The servers that are compared, each on one core's worth of threads, and what they cost.

import { spawn } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { post, webSocket } from './hub_clients.mjs';
import { freePort } from '../../tests/browser/waiting.mjs';

/** CPU seconds that a process and its children have used. */
function cpuOf(pid) {
  const stat = (of) => readFileSync(`/proc/${of}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ');
  const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  const mine = all.filter((of) => {
    try {
      return of === String(pid) || stat(of)[1] === String(pid);
    } catch {
      return false; // It has ended meanwhile.
    }
  });
  return mine.reduce((sum, of) => sum + (Number(stat(of)[11]) + Number(stat(of)[12])) / 100, 0);
}

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

function started(program, args, options = {}) {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  running.add(child);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  return {
    child,
    cpu: () => cpuOf(child.pid),
    stop: async () => {
      child.kill('SIGTERM');
      const late = setTimeout(() => child.kill('SIGKILL'), 5000);
      await ended;
      clearTimeout(late);
      running.delete(child);
    },
  };
}

/** The first match in what a program says. */
function said(stream, pattern) {
  return new Promise((resolve, reject) => {
    let text = '';
    stream.setEncoding('utf8').on('data', (part) => {
      const found = pattern.exec(text += part);
      if (found) resolve(found[1]);
    }).on('end', () => reject(new Error(`it ended and said: ${text}`)));
  });
}

/** Waits until a port takes connections. */
async function listens(port) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await new Promise((resolve, reject) => net.connect(port, '127.0.0.1', function open() { this.destroy(); resolve(); }).once('error', reject));
    } catch (error) {
      if (tries > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

/** The hub, one shard. */
export async function pushring(program) {
  const directory = mkdtempSync(join(tmpdir(), 'pushring-rivals-'));
  const token = randomBytes(24).toString('base64');
  writeFileSync(join(directory, 'token'), token, { mode: 0o600 });
  const server = started(program, ['serve', '--hub', '--hub-open', '--hub-open-subscribe', '*', '--hub-sse', '--shards', '1', '--no-pin',
    '--listen', '127.0.0.1:0', '--api-listen', '127.0.0.1:0', '--admin-listen', 'off', '--api-token-file', join(directory, 'token')],
  { env: { ...process.env, PUSHRING_CONTROL: 'off' } });
  const [port, api] = await Promise.all([
    said(server.child.stdout, /listening on http:\/\/127\.0\.0\.1:(\d+)/),
    said(server.child.stderr, /http:\/\/127\.0\.0\.1:(\d+)\/api\/push/),
  ]);
  return {
    ...server,
    name: 'pushring',
    port: Number(port),
    publishPort: Number(api),
    subscribe: async (topic, onText) => {
      const socket = await webSocket(Number(port), '/hub', 'pushring.1', onText);
      socket.send(`\u001e{"subscribe":"${topic}"}`);
      return socket;
    },
    publish: (topic, text) => post('/api/push', `Authorization: Bearer ${token}\r\nPush-To: topic=${topic}\r\nContent-Type: text/plain\r\n`, text),
    stop: async () => {
      await server.stop();
      rmSync(directory, { recursive: true });
    },
  };
}

/** nginx with nchan, one worker. */
export async function nchan() {
  const module = ['/usr/lib/nginx/modules', '/usr/share/nginx/modules'].map((place) => join(place, 'ngx_nchan_module.so')).find(existsSync);
  if (!module) throw new Error('nchan is not installed: apt-get install nginx-core libnginx-mod-nchan');
  const [directory, port] = [mkdtempSync(join(tmpdir(), 'pushring-rivals-')), await freePort()];
  const paths = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${directory}/${name};`).join('\n');
  writeFileSync(join(directory, 'nginx.conf'), `load_module ${module};
daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid ${directory}/pid; error_log ${directory}/error.log error;
events { worker_connections 32768; }
http {
access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_body_buffer_size 64k; client_body_in_single_buffer on;
nchan_shared_memory_size 256M;
${paths}
server {
listen 127.0.0.1:${port} backlog=4096;
location ~ ^/sub/(.+)$ { nchan_subscriber websocket eventsource; nchan_channel_id $1; nchan_subscriber_first_message newest; }
location ~ ^/pub/(.+)$ { nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 10000; nchan_message_timeout 5s; }
}
}
`);
  const server = started('/usr/sbin/nginx', ['-c', join(directory, 'nginx.conf'), '-p', directory, '-e', join(directory, 'error.log')]);
  await listens(port);
  return {
    ...server,
    name: 'nginx + nchan',
    port,
    publishPort: port,
    subscribe: (topic, onText) => webSocket(port, `/sub/${topic}`, '', onText),
    publish: (topic, text) => post(`/pub/${topic}`, 'Content-Type: text/plain\r\n', text),
    stop: async () => {
      await server.stop();
      rmSync(directory, { recursive: true });
    },
  };
}

/** Sockudo, which speaks Pusher's protocol; its limits out of the way. */
export async function sockudo(program) {
  const [port, key, secret] = [await freePort(), 'key', 'secret'];
  const server = started(program, [], { stdio: 'ignore', cwd: tmpdir(), env: { PATH: process.env.PATH, HOST: '127.0.0.1', PORT: String(port),
    METRICS_ENABLED: 'false', RATE_LIMITER_ENABLED: 'false', LOG_LEVEL: 'error', TOKIO_WORKER_THREADS: '1', SOCKUDO_DEFAULT_APP_ID: 'app',
    SOCKUDO_DEFAULT_APP_KEY: key, SOCKUDO_DEFAULT_APP_SECRET: secret, SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS: '100000',
    SOCKUDO_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SECOND: '100000000' } });
  await listens(port);
  return {
    ...server,
    name: 'Sockudo',
    port,
    publishPort: port,
    subscribe: async (topic, onText) => {
      const socket = await webSocket(port, `/app/${key}?protocol=7`, '', onText);
      socket.send(JSON.stringify({ event: 'pusher:subscribe', data: { channel: topic } }));
      return socket;
    },
    publish: (topic, text) => {
      const body = JSON.stringify({ name: 'm', channel: topic, data: text });
      const query = `auth_key=${key}&auth_timestamp=${Math.floor(Date.now() / 1000)}&auth_version=1.0&body_md5=${createHash('md5').update(body).digest('hex')}`;
      const signature = createHmac('sha256', secret).update(`POST\n/apps/app/events\n${query}`).digest('hex');
      return post(`/apps/app/events?${query}&auth_signature=${signature}`, 'Content-Type: application/json\r\n', body);
    },
  };
}

/** Socket.IO with connection state recovery. */
export async function socketio() {
  const server = started(process.execPath, [fileURLToPath(new URL('socketio.mjs', import.meta.url))]);
  const port = Number(await said(server.child.stdout, /^(\d+)/));
  return { ...server, name: 'Socket.IO 4.8', port, publishPort: port, publish: (_topic, text) => post('/publish', '', text) };
}
