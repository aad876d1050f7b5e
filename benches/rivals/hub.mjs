// The hub beside what others run for the same work, in one run, on this machine's loopback: CPU of the servers for each
// delivery, publish or recovered client. Bounded: each measurement takes --seconds, a recovery 25.
//
//     npm --prefix benches/rivals ci
//     node benches/rivals/hub.mjs [--pushring PROGRAM] [--sockudo PROGRAM] [--seconds 5] [--clients 1000] [--runs 3] [CELL…]
//
// CELLs: sse (event streams beside nginx + nchan), publish (publishing over HTTP beside nchan, and Sockudo where its program is
// named, to one channel and to ten thousand), recovery (a stream whose clients are each cut for 5 s, beside Socket.IO). Without any, all.

import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { eventStream, keptAlive, webSocket } from './hub_clients.mjs';
import { nchan, pushring, socketio, sockudo } from './hub_servers.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    pushring: { type: 'string', default: fileURLToPath(new URL('../../target/release/pushring', import.meta.url)) },
    sockudo: { type: 'string' },
    seconds: { type: 'string', default: '5' },
    clients: { type: 'string', default: '1000' },
    runs: { type: 'string', default: '3' },
  },
});
const [seconds, clients, runs] = [values.seconds, values.clients, values.runs].map(Number);
const CELLS = { sse, publish, recovery };
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const TEXT = 'x'.repeat(128);

/** Connects so many, some at a time. */
async function crowd(count, connect) {
  const all = [];
  for (let at = 0; at < count; at += 100) {
    all.push(...await Promise.all(Array.from({ length: Math.min(100, count - at) }, (_, more) => connect(at + more))));
  }
  return all;
}

async function until(is, what) {
  const end = Date.now() + 10_000;
  while (!is()) {
    if (Date.now() > end) throw new Error(`not within 10 s: ${what()}`);
    await pause(1);
  }
}

/** Whether so many have come; no longer waited for once none comes for a second. */
async function delivered(came, count) {
  for (let [before, since] = [came.count, Date.now()]; came.count < count;) {
    await pause(1);
    if (came.count !== before) [before, since] = [came.count, Date.now()];
    else if (Date.now() - since > 1000) return false;
  }
  return true;
}

const ok = ({ status, body }) => {
  if (status < 200 || status > 299) throw new Error(`${status} ${body}`);
};

/** A topic's subscribers, and how many messages have come to them. */
async function subscribed(server, topic, count) {
  const came = { count: 0 };
  const onText = (text) => { came.count += text.includes(TEXT) ? 1 : 0; };
  const sockets = await crowd(count, () => server.subscribe(topic, onText));
  return { came, end: () => sockets.forEach((socket) => socket.cut()) };
}

/** Event streams: µs of CPU for each delivery, with one message in flight, and with sixteen that are published side by side. */
async function sse() {
  const rows = {};
  for (const make of [() => pushring(values.pushring), nchan]) {
    const server = await make();
    let came = 0;
    const path = server.name === 'pushring' ? '/hub?topic=public.a' : '/sub/public.a';
    const streams = await crowd(clients, () => eventStream(server.port, path, (data) => { came += data === TEXT ? 1 : 0; }));
    const row = rows[server.name] = {};
    for (const inFlight of [1, 16]) {
      const publishers = await Promise.all(Array.from({ length: inFlight }, () => keptAlive(server.publishPort)));
      await pause(300);
      came = 0;
      const [cpu, end] = [server.cpu(), Date.now() + seconds * 1000];
      let sent = 0;
      while (Date.now() < end) {
        const request = server.publish('public.a', TEXT);
        await Promise.all(publishers.map(async (publisher) => ok(await publisher.ask(request))));
        sent += inFlight;
        await until(() => came === sent * clients, () => `${came} of ${sent * clients} events came`);
      }
      row[`µs a delivery, ${inFlight} in flight`] = (server.cpu() - cpu) / came * 1e6;
      row[`deliveries, ${inFlight} in flight`] = came;
      publishers.forEach((publisher) => publisher.end());
    }
    streams.forEach((stream) => stream.destroy());
    await server.stop();
  }
  const ratio = (inFlight) => {
    const [ours, theirs] = [rows.pushring, rows['nginx + nchan']].map((row) => row[`µs a delivery, ${inFlight} in flight`]);
    return ours / theirs;
  };
  return { rows, ratios: { '1 in flight': ratio(1), '16 in flight': ratio(16) } };
}

/** Publishing: µs of CPU for each, 16 connections that are kept alive; and for each delivery where there are ten thousand. */
async function publish() {
  const rows = {};
  const rivals = values.sockudo ? [nchan, () => sockudo(values.sockudo)] : [nchan];
  for (const make of [() => pushring(values.pushring), ...rivals]) {
    const server = await make();
    const row = rows[server.name] = {};
    for (const channels of [1, 10 * clients]) {
      const topic = `public.${channels}`;
      const { came, end: leave } = await subscribed(server, topic, channels);
      await pause(300);
      const publishers = await Promise.all(Array.from({ length: channels === 1 ? 16 : 1 }, () => keptAlive(server.publishPort)));
      const [cpu, began] = [server.cpu(), Date.now()];
      const end = began + seconds * 1000;
      const ahead = channels > 1 ? 0 : 1000;
      let [sent, lost] = [0, 0];
      await Promise.all(publishers.map(async (publisher) => {
        const request = server.publish(topic, TEXT);
        while (Date.now() < end) {
          ok(await publisher.ask(request));
          sent += 1;
          // To many, one at a time, and to one no more than its budget: what waits for clients is not what is measured.
          if (sent * channels - came.count - lost > ahead && !await delivered(came, sent * channels - lost - ahead)) {
            lost = sent * channels - came.count;
          }
        }
      }));
      const [took, used] = [(Date.now() - began) / 1000, server.cpu() - cpu];
      if (!await delivered(came, sent * channels - lost)) lost = sent * channels - came.count;
      if (lost > 0) row[`lost to ${channels}`] = lost;
      if (channels === 1) Object.assign(row, { 'publishes a second': sent / took, 'µs a publish': used / sent * 1e6 });
      else row[`µs a delivery to ${channels}`] = used / (sent * channels) * 1e6;
      publishers.forEach((publisher) => publisher.end());
      leave();
    }
    await server.stop();
  }
  return { rows, ratios: { 'a publish': rows.pushring['µs a publish'] / rows['nginx + nchan']['µs a publish'] } };
}

/** What of a stream's numbers came to a client: those that are missing, and those that came twice. */
class Heard {
  last = 0;
  lost = 0;
  doubled = 0;
  told = 0;

  hear(number) {
    if (number <= this.last) this.doubled += 1;
    else {
      this.lost += number - this.last - 1;
      this.last = number;
    }
  }
}

/** A client of the hub that counts, is cut and comes back. */
async function hubClient(server, heard) {
  let [channel, token, received] = [];
  let socket;
  const connect = async () => {
    const back = channel === undefined ? '' : `, resume.${channel}.${token}.${received}`;
    await new Promise((resolve, reject) => {
      let hasHello = false;
      webSocket(server.port, '/hub', `pushring.1${back}`, (text) => {
        if (!hasHello) {
          hasHello = true;
          const hello = JSON.parse(text);
          heard.told += hello.lost ?? 0;
          if (hello.resumed === undefined) received = 0;
          else if (!hello.resumed) heard.told += 1;
          [channel, token] = [hello.channel_id, hello.resume];
          return resolve();
        }
        if (text.startsWith('\u001e')) return;
        received += 1;
        heard.hear(Number(text.trimEnd()));
      }).then((open) => { socket = open; }, reject);
    });
  };
  await connect();
  await until(() => socket, () => 'it is open');
  socket.send('\u001e{"subscribe":"public.stream"}');
  return {
    cut: async () => {
      socket.cut();
      await pause(5000);
      await connect();
    },
    end: () => socket.cut(),
  };
}

async function socketioClient(server, heard) {
  const { io } = await import('socket.io-client');
  const socket = io(`http://127.0.0.1:${server.port}`, { transports: ['websocket'], reconnectionDelay: 5000, reconnectionDelayMax: 5000,
    randomizationFactor: 0, forceNew: true });
  socket.on('m', (text) => heard.hear(Number(text.trimEnd())));
  await new Promise((resolve) => socket.once('connect', resolve));
  return {
    cut: async () => {
      const back = new Promise((resolve) => socket.once('connect', resolve));
      socket.io.engine.close();
      await back;
      if (!socket.recovered) heard.told += 1;
    },
    end: () => socket.disconnect(),
  };
}

/** 20 messages a second to all, each client cut for 5 s once or never: what that costs more for each that came back. */
async function recovery() {
  const rows = {};
  for (const [make, client] of [[() => pushring(values.pushring), hubClient], [socketio, socketioClient]]) {
    const used = [];
    for (const isCut of [false, true]) {
      const server = await make();
      const heard = Array.from({ length: clients }, () => new Heard());
      const all = await crowd(clients, (at) => client(server, heard[at]));
      const publisher = await keptAlive(server.publishPort);
      await pause(500);
      const [cpu, began] = [server.cpu(), Date.now()];
      let number = 0;
      const stream = (async () => {
        while (Date.now() < began + 18_000) {
          number += 1;
          ok(await publisher.ask(server.publish('public.stream', String(number).padEnd(128))));
          await pause(Math.max(0, began + number * 50 - Date.now()));
        }
      })();
      // Each at another moment of the first ten seconds.
      const cuts = isCut ? all.map(async (one, at) => {
        await pause(1000 + at / clients * 10_000);
        await one.cut();
      }) : [];
      await Promise.all([stream, ...cuts]);
      const all_came = () => heard.every(({ last }) => last === number);
      for (let tries = 0; tries < 300 && !all_came(); tries += 1) await pause(10);
      used.push(server.cpu() - cpu);
      const sum = (field) => heard.reduce((of, one) => of + one[field], 0);
      const tail = heard.reduce((of, { last }) => of + number - last, 0);
      if (isCut) rows[server.name] = { lost: sum('lost') + tail, doubled: sum('doubled'), 'told of loss': sum('told') };
      all.forEach((one) => one.end());
      publisher.end();
      await server.stop();
      if (isCut) rows[server.name]['µs more a recovered client'] = (used[1] - used[0]) / clients * 1e6;
      if (isCut) rows[server.name]['CPU s of all'] = used[1];
    }
  }
  const more = (name) => rows[name]['µs more a recovered client'];
  return { rows, ratios: { 'a recovered client': more('pushring') / more('Socket.IO 4.8') } };
}

for (const name of positionals.length ? positionals : Object.keys(CELLS)) {
  const all = {};
  for (let run = 1; run <= runs; run += 1) {
    const { rows, ratios } = await CELLS[name]();
    console.log(`\n${name}, run ${run} of ${runs}:`);
    console.table(rows);
    for (const [of, ratio] of Object.entries(ratios)) (all[of] ??= []).push(ratio);
  }
  for (const [of, ratios] of Object.entries(all)) {
    const median = ratios.sort((one, other) => one - other)[ratios.length >> 1];
    console.log(`${name}, ${of}: median ratio of CPU, pushring to the other: ${median.toFixed(3)}`);
  }
}
process.exit(0);
