// A room that tabs share: `relay` sends what one says to every other, `unicast` what is for one tab to its channel alone.

import { $, node, open, token } from './channels.js';

const pick = (words) => words[Math.floor(Math.random() * words.length)];
export const me = {
  tab: crypto.getRandomValues(new Uint32Array(2)).join('-'),
  name: `${pick(['amber', 'brisk', 'calm', 'dapper', 'eager', 'fair', 'glad', 'keen', 'lucid', 'merry', 'noble', 'quick'])} `
    + pick(['badger', 'crane', 'dolphin', 'egret', 'falcon', 'heron', 'ibex', 'lynx', 'marten', 'otter', 'puffin', 'wren']),
};

export const tabs = new Map();
/** The tab that is written to alone: its number and name, which stay when it has gone, so that nobody else gets what was
 * meant for it. */
let partner = null;

/** What a channel passes on was written by another page: only objects with the fields we know get further. */
function parse(text) {
  try {
    const message = JSON.parse(text);
    const isOurs = typeof message?.tab === 'string' && typeof message.name === 'string' && message.tab !== me.tab;
    return isOurs ? { ...message, name: message.name.slice(0, 40) } : null;
  } catch {
    return null;
  }
}

/** What this tab may not have heard. */
function missed(count) {
  const what = count === null ? 'This tab came back on a new channel: what was said meanwhile it has not heard.'
    : `${count} ${count === 1 ? 'message was' : 'messages were'} said meanwhile and cannot be had any more.`;
  say('', what, 'note');
}

export const relay = open({
  title: '/relay:pushring:sys/',
  path: '/relay:pushring:sys/',
  onOpen: () => announce('hello'),
  onGap: missed,
  onMessage(data) {
    const message = typeof data === 'string' && parse(data);
    if (!message) return;
    if (message.kind === 'bye') {
      tabs.delete(message.tab);
    } else {
      const isNew = !tabs.has(message.tab);
      tabs.set(message.tab, { name: message.name, id: Number.isInteger(message.id) ? message.id : null, seen: Date.now() });
      if (isNew) announce('here');
    }
    if (message.kind === 'say') say(message.name, String(message.text), '');
    showTabs();
  },
});

// Without a token there is no registering; the same process then has a bound path.
const hasToken = token() !== null;
export const unicast = open({
  title: hasToken ? '/ → unicast:pushring:sys' : '/unicast:pushring:sys/',
  path: hasToken ? '/' : '/unicast:pushring:sys/',
  register: hasToken ? () => ({ auth_token: token(), target_process: 'unicast:pushring:sys' }) : undefined,
  onOpen: () => announce('here'),
  onMessage(data) {
    // Text is the process' greeting, which says what the channel's own has said.
    if (typeof data === 'string') return;
    const message = parse(new TextDecoder().decode(data));
    if (!message) return;
    if (message.kind === 'got') {
      clearTimeout(unheard.get(message.number));
      return void unheard.delete(message.number);
    }
    say(`${message.name}, to you`, String(message.text), 'direct');
    if (Number.isInteger(message.id)) sendTo(message.id, { kind: 'got', ...me, number: message.number });
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
    say('', `“${text.slice(0, 60)}” did not reach ${name}: that tab has gone.`, 'note');
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

export function say(who, text, className) {
  const list = $('messages');
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = node('li', '', className);
  if (who) item.append(node('cite', who));
  item.append(text.slice(0, 2000));
  list.append(item);
  while (list.children.length > 200) list.firstChild.remove();
  if (atEnd || className.includes('mine')) list.scrollTop = list.scrollHeight;
}

export function showTabs() {
  const gone = partner !== null && !tabs.has(partner.tab);
  $('tab-count').textContent = tabs.size + 1;
  $('with').textContent = !partner ? 'with every tab' : gone ? `${partner.name} has left` : `with ${partner.name} alone`;
  $('with').className = gone ? 'gone' : '';
  $('everybody').hidden = partner === null;
  const rows = [...tabs].sort(([a], [b]) => (a < b ? -1 : 1)).map(([tab, { name, id }]) => {
    const button = node('button', name);
    button.append(node('small', id === null ? '' : `#${id}`));
    button.disabled = id === null;
    button.setAttribute('aria-pressed', partner?.tab === tab);
    button.onclick = () => {
      partner = partner?.tab === tab ? null : { tab, name };
      showTabs();
      $('text').focus();
    };
    const row = document.createElement('li');
    row.append(button);
    return row;
  });
  // What has the focus keeps it.
  const focused = [...$('tabs').querySelectorAll('button')].indexOf(document.activeElement);
  $('tabs').replaceChildren(...(rows.length ? rows : [node('li', 'Only this one.', 'hint')]));
  if (focused >= 0) $('tabs').querySelectorAll('button')[focused]?.focus();
}

$('everybody').onclick = () => {
  partner = null;
  showTabs();
  $('text').focus();
};

$('say').onsubmit = (event) => {
  event.preventDefault();
  const text = $('text').value.trim();
  if (!text) return;
  const to = partner && tabs.get(partner.tab);
  if (partner && !to) return say('', `Not sent: ${partner.name} has left. Choose another tab, or every tab.`, 'note');
  const sent = to ? sendAlone(partner, to, text) : relay.send(JSON.stringify({ kind: 'say', ...me, id: unicast.id, text }));
  if (!sent) return say('', 'Not sent: the channel is not open.', 'note');
  say(to ? `to ${to.name}` : '', text, to ? 'mine direct' : 'mine');
  $('text').value = '';
};

addEventListener('pagehide', () => announce('bye'));
addEventListener('pageshow', () => announce('hello'));
say('', 'What you say here goes through one process to every other tab.', 'note');
showTabs();

setInterval(() => {
  announce('here');
  // A background tab's timers run once a minute.
  for (const [tab, { seen }] of tabs) if (Date.now() - seen > 90_000) tabs.delete(tab);
  showTabs();
}, 5000);
