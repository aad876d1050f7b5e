// A thousand receivers beside this page, some of which stop reading: what the process `stage` measures, as a picture and in words.
// The page is sent the same messages as they are.

import { $, choose, ms, open, spark, whole } from './channels.js';

const KEPT = 120;
const POLICIES = {
  close: 'A receiver for which too much waits is closed (1013). It comes again when it reads, and knows that it has missed something.',
  drop: 'Where too much waits for a receiver, the oldest of it is dropped: for positions and prices, of which only the last ones matter.',
  conflate: 'One message waits for each receiver, the newest: who reads again sees how things are, not how they were.',
};

const p99s = [];
let marks = [];
let reports = 0;
let before = null;
let stalledBefore = 0;
let stage = null;

const size = (bytes) => (bytes < 1 << 20 ? `${whole(bytes / 1024)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`);

// ---- What this page gets itself --------------------------------------------------------------------------------------

let arrivals = [];

function arrived() {
  const now = performance.now();
  arrivals.push(now);
  while (arrivals[0] < now - 5000) arrivals.shift();
}

function showMine() {
  const now = performance.now();
  const recent = arrivals.filter((at) => at > now - 2000);
  $('mine').textContent = (recent.length / 2).toFixed(1);
  let longest = 0;
  for (let at = 1; at < arrivals.length; at++) longest = Math.max(longest, arrivals[at] - arrivals[at - 1]);
  $('mine-more').textContent = arrivals.length > 1 ? `longest pause of the last 5 s: ${whole(longest)} ms` : '';
}

// ---- The picture -----------------------------------------------------------------------------------------------------

function draw(seats) {
  const canvas = $('seats');
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !seats.length) return;
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const pen = canvas.getContext('2d');
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  const columns = Math.max(1, Math.round(Math.sqrt((seats.length * width) / height)));
  const rows = Math.ceil(seats.length / columns);
  const [dx, dy] = [width / columns, height / rows];
  const r = Math.min(dx, dy) * 0.32;
  const style = getComputedStyle(document.documentElement);
  const [good, wait, bad, line] = ['--good', '--wait', '--bad', '--line'].map((name) => style.getPropertyValue(name));
  pen.lineWidth = Math.max(1.2, r * 0.45);
  [...seats].forEach((seat, at) => {
    const [x, y] = [(at % columns + 0.5) * dx, (Math.floor(at / columns) + 0.5) * dy];
    pen.beginPath();
    if (seat === 'x') {
      pen.strokeStyle = bad;
      for (const way of [1, -1]) {
        pen.moveTo(x - r * 0.8, y - r * 0.8 * way);
        pen.lineTo(x + r * 0.8, y + r * 0.8 * way);
      }
      return pen.stroke();
    }
    if (seat === 's') {
      pen.strokeStyle = wait;
      pen.arc(x, y, r * 0.8, 0, 7);
      return pen.stroke();
    }
    pen.fillStyle = { o: good, c: wait }[seat] ?? line;
    pen.arc(x, y, r, 0, 7);
    pen.fill();
  });
}

// ---- In words --------------------------------------------------------------------------------------------------------

/** What has happened. Without numbers that change all the time: it is read out when it changes. */
function inWords(report, counts) {
  const { receivers, stalled, policy, budget, trouble, fullest } = report;
  if (trouble) return ['bad', `Not all can be here: ${trouble}.`];
  if (!receivers) return ['', 'No receivers are simulated here.'];
  if (counts.o + counts.s + counts.x + counts.c < receivers) return ['', 'The receivers come in.'];
  const others = whole(receivers - stalled);
  const closed = counts.x >= stalled;
  if (stalled && policy === 'close' && closed) {
    return ['bad', `${stalled} did not keep up, and each was closed when ${size(budget)} waited for it. The other ${others} noticed nothing.`];
  }
  if (stalled && policy === 'drop' && fullest > budget * 0.9) {
    return ['wait', `${stalled} have stopped reading. The newest ${size(budget)} wait for each, and the oldest are dropped. The other ${others} notice nothing.`];
  }
  if (stalled && policy === 'conflate') {
    return ['wait', `${stalled} have stopped reading. For each of them one message waits, the newest. The other ${others} notice nothing.`];
  }
  if (stalled) return ['wait', `${stalled} have stopped reading. What they do not read waits for them. The other ${others} notice nothing.`];
  if (counts.c) return ['wait', 'Those who had stopped read again, and take what waits for them.'];
  if (report.missed_in_all) {
    return ['', `All read. Who had stopped has skipped ${whole(report.missed_in_all)} messages by that, as was asked for.`];
  }
  return ['', 'All read. Now make some of them stop.'];
}

function show(report) {
  const { receivers, seats, stalled, budget, p50_us, p99_us } = report;
  const counts = Object.fromEntries(['o', 's', 'x', 'c'].map((letter) => [letter, seats.split(letter).length - 1]));
  for (const [letter, count] of Object.entries(counts)) $(`count-${letter}`).textContent = whole(count);
  $('receivers').textContent = receivers === 1000 ? 'A thousand' : whole(receivers);
  $('tick-bytes').textContent = size(report.bytes);
  $('tick-rate').textContent = report.per_s;
  draw(seats);
  $('seats').setAttribute('aria-label', `${receivers} receivers: ${counts.o} read, ${counts.s} have stopped reading, ${counts.x} were closed, ${counts.c} catch up`);

  marks = marks.map((mark) => mark - (p99s.length >= KEPT)).filter((mark) => mark >= 0);
  if (p99_us !== null) {
    p99s.push(p99_us / 1000);
    if (p99s.length > KEPT) p99s.shift();
    $('p99').textContent = ms(p99_us / 1000);
    $('p99-more').textContent = before === null ? `half within ${ms(p50_us / 1000)}` : `before the stop ${ms(before)}`;
  }
  if (stalled !== stalledBefore) {
    const usual = [...p99s].slice(-20).sort((a, b) => a - b);
    if (!stalledBefore) before = usual[usual.length >> 1] ?? null;
    if (!stalled) before = null;
    stalledBefore = stalled;
    marks.push(p99s.length - 1);
  }
  spark($('spark-p99'), p99s, { kept: KEPT, marks, floor: 10 });

  $('fullest').textContent = size(report.fullest);
  $('fullest-more').textContent = `of ${size(budget)}`;
  $('fullest-bar').value = Math.min(1, report.fullest / budget);
  const became = [['sent', report.sent], ['waiting', report.queued], ['replaced an older one', report.conflated], ['dropped', report.dropped]];
  $('outcome').textContent = became.filter(([, many], at) => at === 0 || many).map(([what, many]) => `${whole(many)} ${what}`).join(', ')
    + (report.closed_in_all ? `; ${whole(report.closed_in_all)} closed so far` : '');

  const [state, words] = inWords(report, counts);
  $('stage-says').className = `says ${state}`;
  if ($('stage-says').textContent !== words) $('stage-says').textContent = words;
  choose($('stall'), [...$('stall').children].find((button) => Number(button.dataset.stall) === stalled));
  choose($('policy'), [...$('policy').children].find((button) => button.dataset.policy === report.policy));
  $('policy-says').textContent = POLICIES[report.policy];
  if (reports++ % 2) showMine();
}

// ---- The channel -----------------------------------------------------------------------------------------------------

for (const button of $('stall').children) button.onclick = () => stage?.send(JSON.stringify({ stall: Number(button.dataset.stall) }));
for (const button of $('policy').children) button.onclick = () => stage?.send(JSON.stringify({ policy: button.dataset.policy }));
$('policy-says').textContent = POLICIES.close;

/** A page that nobody sees keeps no thousand connections busy. */
function watch() {
  if (document.visibilityState === 'hidden') {
    stage?.close();
    stage = null;
  } else {
    stage ??= open({
      title: '/stage:pushring:sys/',
      path: '/stage:pushring:sys/',
      resume: false,
      onOpen: () => { arrivals = []; },
      onMessage: (data) => (typeof data === 'string' ? show(JSON.parse(data)) : arrived()),
    });
  }
}

document.addEventListener('visibilitychange', watch);
watch();
