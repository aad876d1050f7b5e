// A stream of words that can be cut. The page knows the text, so it sees for itself whether each word that comes is the one
// that must come.

import { $, node, open, whole } from './channels.js';

const WORDS_SHOWN = 600;
const windowS = Number(document.documentElement.dataset.windowMs) / 1000;
const words = (await (await fetch('/demo/tokens.txt')).text()).match(/\S*\s/g);

/** Which word of the text is next, and how many came, were lost, and were not the one that had to come. */
let next = 0;
const counts = { words: 0, missing: 0, wrong: 0 };
let isCut = false;
let cutAt = 0;
let clock;
/** Until when what comes is what was missed. */
let replayUntil = 0;
let replayed = 0;

$('window').textContent = `${windowS} s`;

function say(words, state = '') {
  $('tokens-say').textContent = words;
  $('tokens-say').className = `says ${state}`;
}

// ---- A connection that can be cut ------------------------------------------------------------------------------------

/** As a WebSocket of a machine without a network. */
function unreachable() {
  const socket = { readyState: 3, close() {}, send() {} };
  setTimeout(() => socket.onerror?.(), 0);
  return socket;
}

/** In the place of WebSocket: while the network is cut nothing comes, and nothing can be opened. */
function Wire(url, protocols) {
  if (isCut) return unreachable();
  const socket = new WebSocket(url, protocols);
  // Before who made it hears anything.
  socket.addEventListener('message', (event) => isCut && event.stopImmediatePropagation());
  return socket;
}

// ---- What comes ------------------------------------------------------------------------------------------------------

function append(made) {
  const stream = $('stream');
  const isAtEnd = stream.scrollHeight - stream.scrollTop - stream.clientHeight < 60;
  stream.append(made);
  while (stream.childNodes.length > WORDS_SHOWN) stream.firstChild.remove();
  if (isAtEnd) stream.scrollTop = stream.scrollHeight;
}

function show() {
  for (const name of ['words', 'missing', 'wrong']) $(name).textContent = whole(counts[name]);
}

function heard(word) {
  counts.words++;
  if (word !== words[next]) counts.wrong++;
  next = (next + 1) % words.length;
  const isReplayed = performance.now() < replayUntil && replayed < expected;
  if (isReplayed) replayed++;
  append(isReplayed ? node('span', word, 'replayed') : document.createTextNode(word));
  show();
}

/** How many words were written while the connection was cut, nearly. */
let expected = 0;

function missed(count, reason) {
  if (count !== null) {
    counts.missing += count;
    next = (next + count) % words.length;
  }
  const many = count === null ? 'An unknown number of words' : `Exactly ${whole(count)} words`;
  append(node('span', count === null ? 'a new stream' : `${whole(count)} words missing`, 'gap'));
  lastGap = { many, reason };
  show();
}

let lastGap = null;
const WHY = {
  expired: `you were away for more than ${windowS} s`,
  trimmed: 'more was written than is kept',
  elsewhere: 'another server answers, or this one was started anew',
  unknown: 'the server does not know the old one',
  closed: 'the server closed it',
};

const tokens = open({
  title: '/tokens:pushring:sys/',
  path: '/tokens:pushring:sys/',
  quiet: true,
  WebSocket: Wire,
  capMs: 2_000,
  onMessage: heard,
  onGap: missed,
  onOpen({ resumed }) {
    const away = cutAt ? (performance.now() - cutAt) / 1000 : 0;
    if (!resumed) next = 0;
    if (lastGap) {
      const { many, reason } = lastGap;
      const anew = resumed ? 'the stream goes on behind them' : 'this is a new stream, from the beginning';
      say(`${many} are missing: ${WHY[reason] ?? reason}. ${anew[0].toUpperCase()}${anew.slice(1)}.`, 'bad');
    } else if (resumed) {
      replayed = 0;
      expected = Math.round(away * 20);
      replayUntil = performance.now() + 1000;
      say(cutAt
        ? `Back after ${away.toFixed(1)} s. What you had missed came at once (marked), and no word is missing.`
        : 'The connection was lost and is back. No word is missing.');
    } else {
      say('Connected. Each word is compared with the text.');
    }
    [lastGap, cutAt] = [null, 0];
  },
  onDown: () => isCut || say('The connection was lost. What comes meanwhile is kept for this page.', 'wait'),
});

// ---- The switch ------------------------------------------------------------------------------------------------------

function tickAway() {
  const away = (performance.now() - cutAt) / 1000;
  const left = Math.max(0, windowS - away);
  $('cut').textContent = left > 0 ? `Come back (${Math.ceil(left)} s left)` : 'Come back (too late)';
}

$('cut').onclick = () => {
  if (isCut) {
    isCut = false;
    clearInterval(clock);
    $('cut').textContent = 'Cut the connection';
    // As a browser tells that there is a network again.
    dispatchEvent(new Event('online'));
    say('Coming back.');
  } else {
    // A page cannot end a connection without a close frame, as a network that fails does. The process can.
    if (!tokens.send('cut')) return;
    isCut = true;
    cutAt = performance.now();
    clock = setInterval(tickAway, 250);
    tickAway();
    say('Cut. The process goes on writing, and each word is kept for you.', 'wait');
  }
  $('cut').setAttribute('aria-pressed', isCut);
};
