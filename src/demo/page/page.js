// The demo's page. Three channels, opened both ways:
//   relay    bound at /relay:pushring:sys/: chat with every tab, and who is there
//   echo     bound at /echo:pushring:sys/: round trips and load
//   unicast  registered on / with the node's token: messages to one tab; its id is its address
"use strict";

const $ = (id) => document.getElementById(id);
const { cookie: cookieName, shards } = document.documentElement.dataset;
const base = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`;
const pick = (words) => words[Math.floor(Math.random() * words.length)];
const me = {
  tab: crypto.getRandomValues(new Uint32Array(2)).join("-"),
  name: `${pick(["amber", "brisk", "calm", "dapper", "eager", "fair", "glad", "keen", "lucid", "merry", "noble", "quick"])} `
    + pick(["badger", "crane", "dolphin", "egret", "falcon", "heron", "ibex", "lynx", "marten", "otter", "puffin", "wren"]),
};
$("me").textContent = me.name;

// ---- Channels -------------------------------------------------------------------------------------------------------

const count = { in: 0, out: 0 };

/** A channel that opens again when it closes. `register` makes the first message, for channels on `/`; `renew` gets what
 * makes that good again where it was refused. */
class Channel {
  constructor({ title, path, register, renew, onOpen, onMessage, onClose }) {
    Object.assign(this, { title, path, register, renew, onOpen, onMessage, onClose, id: null, attempts: 0, ready: false });
    this.row = $("channels").appendChild(document.createElement("li"));
    this.open();
  }

  open() {
    this.show("", "connecting");
    this.socket = new WebSocket(base + this.path);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      if (!this.register) return this.opened();
      this.show("", "registering");
      this.send(JSON.stringify(this.register()));
    };
    this.socket.onmessage = ({ data }) => {
      count.in++;
      if (this.register && !this.ready) {
        this.id = JSON.parse(data).channel_id;
        return this.opened();
      }
      this.onMessage(data);
    };
    this.socket.onclose = ({ code, reason }) => this.closed(code, reason);
  }

  opened() {
    this.ready = true;
    this.attempts = 0;
    this.show("open", this.register ? "registered on /" : "open on a bound path");
    trouble(this, null);
    this.onOpen?.();
  }

  closed(code, reason) {
    this.ready = false;
    this.id = null;
    this.onClose?.();
    // 4401 is for a token of another day, or of a daemon that has been started anew since; of the refusals only that and
    // 4404, for a process that does not run yet, may pass.
    const refused = code >= 4400 && code < 4600 && ![4401, 4404, 4408].includes(code);
    const wait = Math.min(500 * 2 ** this.attempts++, 10_000) * (0.75 + Math.random() / 2);
    const words = reason || { 1001: "the server is stopping", 1006: "the connection was lost or refused" }[code] || "closed";
    this.show("closed", `${code}: ${words}${refused ? "" : "; trying again"}`);
    trouble(this, `${words} (${code})`);
    if (refused) return;
    setTimeout(async () => {
      if (code === 4401) await this.renew?.();
      this.open();
    }, wait);
  }

  send(data) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(data);
    count.out++;
    return true;
  }

  show(state, words) {
    this.row.className = state;
    this.row.replaceChildren(
      node("code", this.title),
      node("small", this.id === null ? words : `${words} · #${this.id}, shard ${this.id % shards}`),
    );
  }
}

const troubles = new Map();
function trouble(channel, words) {
  words === null ? troubles.delete(channel) : troubles.set(channel, words);
  const lines = [...new Set(troubles.values())].map((words) => {
    const titles = [...troubles].filter(([, other]) => other === words).map(([{ title }]) => title);
    return `${titles.join(", ")}: ${words}`;
  });
  $("trouble").textContent = lines.join(" · ");
  $("trouble").hidden = troubles.size === 0;
}

function node(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** What a channel passes on was written by another page: only objects with the fields we know get further. */
function parse(text) {
  try {
    const message = JSON.parse(text);
    const isOurs = typeof message?.tab === "string" && typeof message.name === "string" && message.tab !== me.tab;
    return isOurs ? { ...message, name: message.name.slice(0, 40) } : null;
  } catch {
    return null;
  }
}

// ---- Who is there, and chat -----------------------------------------------------------------------------------------

const tabs = new Map();
/** The tab that is written to alone: its number and name, which stay when it has gone, so that nobody else gets what was
 * meant for it. */
let partner = null;

const relay = new Channel({
  title: "/relay:pushring:sys/",
  path: "/relay:pushring:sys/",
  onOpen: () => announce("hello"),
  onMessage(data) {
    const message = typeof data === "string" && parse(data);
    if (!message) return;
    if (message.kind === "bye") {
      tabs.delete(message.tab);
    } else {
      const isNew = !tabs.has(message.tab);
      tabs.set(message.tab, { name: message.name, id: Number.isInteger(message.id) ? message.id : null, seen: Date.now() });
      if (isNew) announce("here");
    }
    if (message.kind === "say") say(message.name, String(message.text), "");
    showTabs();
  },
});

const token = () => {
  const found = cookieName && document.cookie.split("; ").find((pair) => pair.startsWith(`${cookieName}=`));
  return found ? found.slice(cookieName.length + 1) : null;
};

/** A new token: the page itself comes with one. */
async function renew() {
  try {
    await fetch("/", { cache: "no-store" });
  } catch {
    // The server is not back yet; the channel tries again.
  }
}

// Without a token there is no registering; the same process then hands its id out on its bound path.
const unicast = new Channel({
  title: token() ? "/ → unicast:pushring:sys" : "/unicast:pushring:sys/",
  path: token() ? "/" : "/unicast:pushring:sys/",
  register: token() ? () => ({ auth_token: token(), target_process: "unicast:pushring:sys" }) : undefined,
  renew,
  onOpen: () => announce("here"),
  onMessage(data) {
    if (typeof data === "string") {
      // The process' own greeting; it says what the registration has said.
      if (!this.register) {
        this.id = JSON.parse(data).channel_id;
        this.show("open", "open on a bound path: no token here");
        announce("here");
      }
      return;
    }
    const message = parse(new TextDecoder().decode(data));
    if (!message) return;
    if (message.kind === "got") {
      clearTimeout(unheard.get(message.number));
      return void unheard.delete(message.number);
    }
    say(`${message.name}, to you`, String(message.text), "direct");
    if (Number.isInteger(message.id)) sendTo(message.id, { kind: "got", ...me, number: message.number });
  },
});

/** Messages to one tab that it has not answered: a tab may close without a word. */
const unheard = new Map();
let numbers = 0;

function sendAlone({ tab, name }, { id }, text) {
  const number = ++numbers;
  if (!sendTo(id, { ...me, id: unicast.id, text, number })) return false;
  unheard.set(number, setTimeout(() => {
    unheard.delete(number);
    say("", `“${text.slice(0, 60)}” did not reach ${name}: that tab has gone.`, "note");
    tabs.delete(tab);
    showTabs();
  }, 3000));
  return true;
}

function announce(kind) {
  relay?.send(JSON.stringify({ kind, ...me, id: unicast?.id ?? null }));
}

/** To one channel: its id, little-endian, before the message. */
function sendTo(id, message) {
  const body = new TextEncoder().encode(JSON.stringify(message));
  const bytes = new Uint8Array(4 + body.length);
  new DataView(bytes.buffer).setUint32(0, id, true);
  bytes.set(body, 4);
  return unicast.send(bytes);
}

function say(who, text, className) {
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = node("li", "", className);
  if (who) item.append(node("cite", who));
  item.append(text.slice(0, 2000));
  list.append(item);
  while (list.children.length > 200) list.firstChild.remove();
  if (atEnd || className.includes("mine")) list.scrollTop = list.scrollHeight;
}

function showTabs() {
  const gone = partner !== null && !tabs.has(partner.tab);
  $("tab-count").textContent = tabs.size + 1;
  $("with").textContent = !partner ? "with every tab" : gone ? `${partner.name} has left` : `with ${partner.name} alone`;
  $("with").className = gone ? "gone" : "";
  $("everybody").hidden = partner === null;
  const rows = [...tabs].sort(([a], [b]) => (a < b ? -1 : 1)).map(([tab, { name, id }]) => {
    const button = node("button", name);
    button.append(node("small", id === null ? "" : `#${id}`));
    button.disabled = id === null;
    button.setAttribute("aria-pressed", partner?.tab === tab);
    button.onclick = () => {
      partner = partner?.tab === tab ? null : { tab, name };
      showTabs();
      $("text").focus();
    };
    const row = document.createElement("li");
    row.append(button);
    return row;
  });
  // What has the focus keeps it.
  const focused = [...$("tabs").querySelectorAll("button")].indexOf(document.activeElement);
  $("tabs").replaceChildren(...(rows.length ? rows : [node("li", "Only this one.", "hint")]));
  if (focused >= 0) $("tabs").querySelectorAll("button")[focused]?.focus();
}

$("everybody").onclick = () => {
  partner = null;
  showTabs();
  $("text").focus();
};

$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  const to = partner && tabs.get(partner.tab);
  if (partner && !to) return say("", `Not sent: ${partner.name} has left. Choose another tab, or every tab.`, "note");
  const sent = to ? sendAlone(partner, to, text) : relay.send(JSON.stringify({ kind: "say", ...me, id: unicast.id, text }));
  if (!sent) return say("", "Not sent: the channel is not open.", "note");
  say(to ? `to ${to.name}` : "", text, to ? "mine direct" : "mine");
  $("text").value = "";
};

addEventListener("pagehide", () => announce("bye"));
addEventListener("pageshow", () => announce("hello"));
say("", "Chat goes through one process to every other tab.", "note");
showTabs();

// ---- Round trips and load -------------------------------------------------------------------------------------------

const PROBE = 1, LOAD = 2;
const loadMessage = new Uint8Array(32).fill(LOAD);
let wanted = 0, inFlight = 0;
let rtts = [], probeSentAt = null;

const echo = new Channel({
  title: "/echo:pushring:sys/",
  path: "/echo:pushring:sys/",
  onOpen() {
    inFlight = 0;
    probe();
    fill();
  },
  onMessage(data) {
    if (new Uint8Array(data)[0] === PROBE) {
      rtts.push(performance.now() - probeSentAt);
      probeSentAt = null;
      return;
    }
    inFlight--;
    fill();
  },
  onClose() {
    probeSentAt = null;
  },
});

function fill() {
  while (inFlight < wanted && echo.send(loadMessage)) inFlight++;
}

function probe() {
  if (probeSentAt !== null || !echo?.ready) return;
  probeSentAt = performance.now();
  echo.send(new Uint8Array([PROBE]));
}

for (const button of $("load").children) {
  button.onclick = () => {
    wanted = Number(button.dataset.window);
    for (const other of $("load").children) other.setAttribute("aria-pressed", other === button);
    fill();
  };
}

// ---- Figures --------------------------------------------------------------------------------------------------------

const history = { in: [], out: [], rtt: [] };
const KEPT = 80;

function keep(list, value) {
  list.push(value);
  if (list.length > KEPT) list.shift();
}

function spark(canvas, values) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * scale)) [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const max = Math.max(...values, 1e-9);
  const step = width / (KEPT - 1);
  const x = (at) => width - (values.length - 1 - at) * step;
  const y = (value) => height - 2 - (value / max) * (height - 6);
  const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  pen.beginPath();
  values.forEach((value, at) => (at ? pen.lineTo(x(at), y(value)) : pen.moveTo(x(at), y(value))));
  pen.strokeStyle = accent;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(width, height);
  pen.lineTo(x(0), height);
  pen.globalAlpha = 0.15;
  pen.fillStyle = accent;
  pen.fill();
  pen.globalAlpha = 1;
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ms = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
let last = { at: performance.now(), in: 0, out: 0 };

setInterval(() => {
  const now = performance.now();
  const seconds = (now - last.at) / 1000;
  for (const way of ["in", "out"]) {
    const rate = (count[way] - last[way]) / seconds;
    keep(history[way], rate);
    const recent = history[way].slice(-4);
    $(`rate-${way}`).textContent = number.format(recent.reduce((a, b) => a + b, 0) / recent.length);
    spark($(`spark-${way}`), history[way]);
  }
  last = { at: now, in: count.in, out: count.out };
  for (const rtt of rtts.splice(0)) keep(history.rtt, rtt);
  if (history.rtt.length) {
    const sorted = [...history.rtt].sort((a, b) => a - b);
    const at = (part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))];
    $("rtt").textContent = ms(at(0.5));
    $("rtt-more").textContent = `median, 95 % under ${ms(at(0.95))}`;
  }
  spark($("spark-rtt"), history.rtt);
  probe();
}, 250);

setInterval(() => {
  announce("here");
  // A background tab's timers run once a minute.
  for (const [tab, { seen }] of tabs) if (Date.now() - seen > 90_000) tabs.delete(tab);
  showTabs();
}, 5000);
