// What `pushring demo` answers, by bun: see README.md. No compression, no pings, no limit of backpressure.
const { CERT, KEY } = process.env;
const channels = new Map();
let nextId = 1;

const open = {
  relay: (socket) => socket.subscribe("all"),
  rooms: (socket) => socket.subscribe(socket.data.url),
  unicast(socket) {
    channels.set((socket.data.id = nextId++), socket);
    socket.send(JSON.stringify({ channel_id: socket.data.id }));
  },
};

const message = {
  echo: (socket, data) => socket.send(data),
  "threaded-echo": (socket, data) => socket.send(data),
  sink: (socket, data) => typeof data !== "string" && socket.send(data),
  relay: (socket, data) => socket.publish("all", data),
  rooms: (socket, data) => socket.publish(socket.data.url, data),
  unicast(_, data) {
    if (data.length >= 4) channels.get(data.readUInt32LE(0))?.send(data.subarray(4));
  },
};

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  tls: CERT && { cert: Bun.file(CERT), key: Bun.file(KEY) },
  fetch(request, server) {
    const url = new URL(request.url).pathname;
    const name = url.slice(1).split(":")[0];
    const taken = message[name] && server.upgrade(request, { data: { url, name } });
    return taken ? undefined : new Response("not found", { status: 404 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    sendPings: false,
    maxPayloadLength: 16 * 1024 * 1024,
    backpressureLimit: 1024 * 1024 * 1024,
    open: (socket) => open[socket.data.name]?.(socket),
    message: (socket, data) => message[socket.data.name](socket, data),
    close: (socket) => channels.delete(socket.data.id),
  },
});
console.log(`listening on http://127.0.0.1:${server.port}`);
