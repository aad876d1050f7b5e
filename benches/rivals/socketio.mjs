// A Socket.IO server with connection state recovery: each POST is told to all clients. Its first line is its port.

import { createServer } from 'node:http';
import { Server } from 'socket.io';

const http = createServer();
const io = new Server(http, { connectionStateRecovery: { maxDisconnectionDuration: 60_000 }, transports: ['websocket'] });
http.prependListener('request', (request, response) => {
  if (request.method !== 'POST' || request.url !== '/publish') return;
  let text = '';
  request.setEncoding('utf8').on('data', (part) => { text += part; }).on('end', () => {
    io.emit('m', text);
    response.writeHead(202, { 'content-length': 0 }).end();
  });
});
http.listen(0, '127.0.0.1', () => console.log(http.address().port));
