// The channels of the page, each a row in its list. They are made by the client that is published for pages: it comes back by
// itself, and says what was lost.

import { connect } from './client.js';

export const $ = (id) => document.getElementById(id);
const { cookie: cookieName, shards } = document.documentElement.dataset;
const base = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}`;

/** Messages of all channels since the page was loaded. */
export const count = { in: 0, out: 0 };

export function node(tag, text, className = '') {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** The token with which this page registers, if it was given one. */
export const token = () => {
  const found = cookieName && document.cookie.split('; ').find((pair) => pair.startsWith(`${cookieName}=`));
  return found ? found.slice(cookieName.length + 1) : null;
};

/** A new token: the page itself comes with one. The one before is of another day, or of a daemon that was started anew since. */
async function renewToken() {
  try {
    await fetch('/', { cache: 'no-store' });
  } catch {
    // The server is not back yet; the channel tries again.
  }
  return true;
}

const troubles = new Map();
function trouble(title, words) {
  words === null ? troubles.delete(title) : troubles.set(title, words);
  const lines = [...new Set(troubles.values())].map((words) => {
    const titles = [...troubles].filter(([, other]) => other === words).map(([title]) => title);
    return `${titles.join(', ')}: ${words}`;
  });
  $('trouble').textContent = lines.join(' · ');
  $('trouble').hidden = troubles.size === 0;
}

const WORDS = { 1001: 'the server is stopping', 1006: 'the connection was lost or refused', 1012: 'the server restarts' };

/**
 * Opens a channel and shows it. `options` are the client's, and `path`; `title` is its name in the list; one that is `quiet` is
 * shown by who opened it when it is down.
 */
export function open({ title, path, quiet, onOpen, onMessage, onDown, onClose, ...options }) {
  const row = $('channels').appendChild(document.createElement('li'));
  const show = (state, words) => {
    row.className = state;
    const id = state === 'open' ? channel.id : null;
    row.replaceChildren(node('code', title), node('small', id === null ? words : `${words} · #${id}, shard ${id % shards}`));
  };
  const isDown = (code, reason) => {
    const words = code === 1012 ? WORDS[1012] : reason || WORDS[code] || 'closed';
    show('closed', `${code}: ${words}`);
    if (!quiet) trouble(title, `${words} (${code})`);
  };
  const channel = connect(base + path, {
    capMs: 5_000,
    onUnauthorized: renewToken,
    ...options,
    onOpen: (opened) => {
      show('open', options.register ? 'registered on /' : options.resume === false ? 'a plain WebSocket' : 'outlives its connection');
      trouble(title, null);
      onOpen?.(opened);
    },
    onMessage: (data) => {
      count.in++;
      onMessage(data);
    },
    onRetry: () => row.className === 'open' && isDown(1006, ''),
    onDown: (code, reason) => {
      isDown(code, reason);
      onDown?.(code, reason);
    },
    onClose: (code, reason) => {
      isDown(code, reason);
      onClose?.(code, reason);
    },
  });
  show('', 'connecting');
  return {
    get id() {
      return channel.isOpen ? channel.id : null;
    },
    get isOpen() {
      return channel.isOpen;
    },
    /** Sends now, or returns false: what a page says is said at once or not at all. */
    send(data) {
      if (!channel.isOpen || !channel.send(data)) return false;
      count.out++;
      return true;
    },
    /** Ends it, and forgets it. */
    close() {
      channel.close();
      trouble(title, null);
      row.remove();
    },
  };
}

export function choose(group, chosen) {
  for (const button of group.children) button.setAttribute('aria-pressed', button === chosen);
}

/** Draws values as a line, the newest at the right; `marks` are places of the list that are marked. */
export function spark(canvas, values, { kept, marks = [], floor = 1e-9 }) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * scale)) [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const pen = canvas.getContext('2d');
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const max = Math.max(...values, floor);
  const step = width / (kept - 1);
  const x = (at) => width - (values.length - 1 - at) * step;
  const y = (value) => height - 2 - (value / max) * (height - 6);
  const style = getComputedStyle(document.documentElement);
  const accent = style.getPropertyValue('--accent');
  pen.strokeStyle = style.getPropertyValue('--wait');
  pen.setLineDash([3, 3]);
  for (const mark of marks) {
    pen.beginPath();
    pen.moveTo(x(mark), 0);
    pen.lineTo(x(mark), height);
    pen.stroke();
  }
  pen.setLineDash([]);
  pen.beginPath();
  values.forEach((value, at) => (at ? pen.lineTo(x(at), y(value)) : pen.moveTo(x(at), y(value))));
  pen.strokeStyle = accent;
  pen.lineWidth = 1.5;
  pen.lineJoin = 'round';
  pen.stroke();
  pen.lineTo(width, height);
  pen.lineTo(x(0), height);
  pen.globalAlpha = 0.15;
  pen.fillStyle = accent;
  pen.fill();
  pen.globalAlpha = 1;
}

export const whole = (value) => new Intl.NumberFormat('en', { maximumFractionDigits: 0 }).format(value);
export const ms = (value) => `${value < 10 ? value.toFixed(value < 1 ? 2 : 1) : value.toFixed(0)} ms`;
