// Clients as thin as they can be, so that the servers are what is measured: HTTP over one connection, event streams, and
// WebSockets without extensions.

import { randomBytes } from 'node:crypto';
import net from 'node:net';

/** Connects, and resolves once that is done. */
function connected(port) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1', () => resolve(socket));
    socket.setNoDelay(true).once('error', reject);
  });
}

/** One connection on which requests follow one another; a new one where the server has ended it behind an answer. */
export async function keptAlive(port) {
  let [socket, waiting, text, ends] = [undefined, undefined, '', false];
  const open = async () => {
    const opened = socket = await connected(port);
    [text, ends] = ['', false];
    socket.setEncoding('latin1').on('data', (part) => {
      text += part;
      const end = text.indexOf('\r\n\r\n');
      if (end < 0) return;
      const head = text.slice(0, end);
      const length = Number(/\r\ncontent-length: *(\d+)/i.exec(head)?.[1] ?? 0);
      if (text.length < end + 4 + length) return;
      ends = /\r\nconnection: *close/i.test(head);
      const [status, body] = [Number(text.slice(9, 12)), text.slice(end + 4, end + 4 + length)];
      text = text.slice(end + 4 + length);
      const { resolve } = waiting;
      waiting = undefined;
      resolve({ status, body });
    }).on('close', () => opened === socket && waiting?.reject(new Error('the connection was closed')));
  };
  await open();
  return {
    /** Sends the bytes of a request; resolves with its answer. */
    ask: async (request) => {
      if (ends) {
        socket.destroy();
        await open();
      }
      return new Promise((resolve, reject) => {
        waiting = { resolve, reject };
        socket.write(request);
      });
    },
    end: () => socket.destroy(),
  };
}

export const post = (path, fields, body) =>
  `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n${fields}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

/** An event stream: `onEvent` is called with the data of each message. Resolves once its head has come. */
export async function eventStream(port, path, onEvent) {
  const socket = await connected(port);
  socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n`);
  return new Promise((resolve, reject) => {
    let text = '';
    let isOpen = false;
    socket.setEncoding('utf8').on('data', (part) => {
      text += part;
      if (!isOpen) {
        const end = text.indexOf('\r\n\r\n');
        if (end < 0) return;
        if (!text.startsWith('HTTP/1.1 200')) return reject(new Error(text.slice(0, end)));
        isOpen = true;
        text = text.slice(end + 4);
        resolve(socket);
      }
      // Chunks' lengths stand on lines of their own, which are no fields.
      const lines = text.split(/\r?\n/);
      text = lines.pop();
      for (const line of lines) if (line.startsWith('data:')) onEvent(line.slice(5).trimStart());
    }).on('error', reject);
  });
}

/** A WebSocket: `onText` is called with each text. Resolves once it is open. */
export async function webSocket(port, path, protocols, onText) {
  const socket = await connected(port);
  const offer = protocols ? `Sec-WebSocket-Protocol: ${protocols}\r\n` : '';
  socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n${offer}`
    + `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`);
  const send = (opcode, payload) => {
    const head = payload.length < 126 ? Buffer.from([0x80 | opcode, 0x80 | payload.length, 0, 0, 0, 0])
      : Buffer.from([0x80 | opcode, 0x80 | 126, payload.length >> 8, payload.length & 255, 0, 0, 0, 0]);
    // A mask of zeros changes nothing.
    socket.write(Buffer.concat([head, payload]));
  };
  return new Promise((resolve, reject) => {
    let bytes = Buffer.alloc(0);
    let isOpen = false;
    socket.on('data', (part) => {
      bytes = bytes.length ? Buffer.concat([bytes, part]) : part;
      if (!isOpen) {
        const end = bytes.indexOf('\r\n\r\n');
        if (end < 0) return;
        const head = bytes.subarray(0, end).toString();
        if (!head.startsWith('HTTP/1.1 101')) return reject(new Error(head));
        isOpen = true;
        bytes = bytes.subarray(end + 4);
        resolve({ send: (text) => send(1, Buffer.from(text)), cut: () => socket.destroy(), socket });
      }
      while (bytes.length >= 2) {
        const short = bytes[1] & 127;
        const at = short < 126 ? 2 : short === 126 ? 4 : 10;
        if (bytes.length < at) return;
        const length = short < 126 ? short : short === 126 ? bytes.readUInt16BE(2) : Number(bytes.readBigUInt64BE(2));
        if (bytes.length < at + length) return;
        const payload = bytes.subarray(at, at + length);
        if ((bytes[0] & 15) === 1) onText(payload.toString());
        if ((bytes[0] & 15) === 9) send(10, payload);
        bytes = bytes.subarray(at + length);
      }
    }).on('error', reject);
  });
}
