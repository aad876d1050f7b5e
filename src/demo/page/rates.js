// Round trips and load, over a channel to the process `echo`, which sends everything back.

import { $, choose, count, ms, open, spark, whole } from './channels.js';

const PROBE = 1, LOAD = 2, KEPT = 80;
const loadMessage = new Uint8Array(32).fill(LOAD);
let wanted = 0, inFlight = 0;
let rtts = [], probeSentAt = null;

const echo = open({
  title: '/echo:pushring:sys/',
  path: '/echo:pushring:sys/',
  onOpen({ resumed }) {
    if (!resumed) inFlight = 0;
    probeSentAt = null;
    probe();
    fill();
  },
  onMessage(data) {
    if (new Uint8Array(data)[0] === PROBE) {
      if (probeSentAt !== null) rtts.push(performance.now() - probeSentAt);
      probeSentAt = null;
      return;
    }
    inFlight = Math.max(0, inFlight - 1);
    fill();
  },
  // What was on its way both ways is gone.
  onGap: () => { inFlight = 0; },
  onLost: () => { inFlight = 0; },
});

function fill() {
  while (inFlight < wanted && echo.send(loadMessage)) inFlight++;
}

function probe() {
  if (probeSentAt !== null || !echo?.isOpen) return;
  probeSentAt = performance.now();
  echo.send(new Uint8Array([PROBE]));
}

for (const button of $('load').children) {
  button.onclick = () => {
    wanted = Number(button.dataset.window);
    choose($('load'), button);
    fill();
  };
}

const history = { in: [], out: [], rtt: [] };

function keep(list, value) {
  list.push(value);
  if (list.length > KEPT) list.shift();
}

let last = { at: performance.now(), in: 0, out: 0 };

setInterval(() => {
  const now = performance.now();
  const seconds = (now - last.at) / 1000;
  for (const way of ['in', 'out']) {
    keep(history[way], (count[way] - last[way]) / seconds);
    const recent = history[way].slice(-4);
    $(`rate-${way}`).textContent = whole(recent.reduce((a, b) => a + b, 0) / recent.length);
    spark($(`spark-${way}`), history[way], { kept: KEPT });
  }
  last = { at: now, in: count.in, out: count.out };
  for (const rtt of rtts.splice(0)) keep(history.rtt, rtt);
  if (history.rtt.length) {
    const sorted = [...history.rtt].sort((a, b) => a - b);
    const at = (part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))];
    $('rtt').textContent = ms(at(0.5));
    $('rtt-more').textContent = `median, 95 % under ${ms(at(0.95))}`;
  }
  spark($('spark-rtt'), history.rtt, { kept: KEPT });
  probe();
}, 250);
