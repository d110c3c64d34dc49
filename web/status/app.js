// Owns the status page: the stream of snapshots, what becomes of it when it breaks, and everything but the picture.

import { Picture, layout, sparkline } from './picture.js';
import * as words from './words.js';

/** Without a snapshot for so long, the node is asked once more, and then said to be away. */
const SILENCE = 4000;
/** How often it is asked while there is no stream, and how often for a new stream. */
const POLL = 2000;
const STREAM_AGAIN = 10_000;
/** Values in a sparkline. */
const KEPT = 60;

const by = (id) => document.getElementById(id);
const picture = new Picture(by('picture'));
const history = { rate: [], latency: [] };
let last = null;
/** The newest event that was shown, and of which run of the node. */
let newest = { id: 0, run: null };
let source = null;
let watchdog = null;
let polling = null;
let streamAgain = 0;

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An element with text in it: whatever comes from the node is text, never markup. */
function make(name, text = '', attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function show(status) {
  last = status;
  document.body.classList.remove('away');
  const { state, text } = words.state(status);
  by('state').dataset.state = state;
  write(by('state'), text);
  write(by('node'), status.node.name);
  document.title = `${text} · ${status.node.name} · Texto`;
  write(by('sentence'), words.sentence(status));
  write(by('seen'), `Texto ${status.node.version}, up for ${words.duration(status.node.uptime_seconds)}; seen at ${words.time(status.at_ms)}`);
  by('legend').hidden = status.servers.length === 0;
  draw();
  showNumbers(status);
  showProblems(status.node.problems);
  showEvents(status);
  showTables(status);
}

function draw() {
  if (!last) return;
  const width = Math.floor(by('picture').parentElement.clientWidth - padding(by('picture').parentElement));
  if (width < 160) return; // Not laid out yet.
  picture.draw(layout(last, width), (last.traffic.acked_per_second ?? 0) > 0);
}

function padding(element) {
  const { paddingLeft, paddingRight } = getComputedStyle(element);
  return parseFloat(paddingLeft) + parseFloat(paddingRight);
}

function showNumbers({ traffic, sessions, totals, broker, node }) {
  const { acked_per_second: acked, failed_per_second: failed, pending } = traffic;
  write(by('rate'), acked === null ? '–' : `${words.rate(acked)} /s`);
  write(by('rate-hint'), failed === null ? 'acknowledged' : `acknowledged; ${words.rate(failed)} /s failed, ${words.count(pending)} pending`);
  const latency = traffic.receipt_ms ?? traffic.send_ms;
  write(by('latency'), latency ? words.milliseconds(latency.p50) : '–');
  const what = traffic.receipt_ms ? 'publish to receipt' : 'send to answer';
  write(by('latency-hint'), latency ? `half of them, ${what}; 99 %: ${words.milliseconds(latency.p99)}` : 'no messages lately');
  write(by('sessions'), words.count(sessions.open));
  write(by('sessions-hint'), `of ${words.count(sessions.max)}; ${words.count(sessions.waiting)} more wait for their clients`);
  write(by('failovers'), words.count(totals.failovers));
  const ago = broker.last_switch_seconds_ago;
  write(by('failovers-hint'), ago === null ? `in ${words.duration(node.uptime_seconds)}` : `the last ${words.duration(ago)} ago`);
  if (acked !== null) {
    push(history.rate, acked);
    push(history.latency, latency?.p50 ?? 0);
    sparkline(by('rate-line'), history.rate);
    sparkline(by('latency-line'), history.latency);
  }
}

function push(values, value) {
  values.push(value);
  if (values.length > KEPT) values.shift();
}

function showProblems(problems) {
  by('problems').hidden = problems.length === 0;
  by('problem-list').replaceChildren(...problems.map((problem) => make('li', problem)));
}

function showEvents({ events, node: { run } }) {
  // The ids count from the start of the node.
  const isSame = newest.run === run;
  const before = isSame ? newest.id : (events[0]?.id ?? 0);
  const isNew = events.filter(({ id }) => id > before);
  if (!isSame || isNew.length > 0) {
    by('events').replaceChildren(...events.map((event) => {
      const item = make('li', '', { 'data-kind': event.kind });
      item.append(make('time', words.time(event.at_ms), { datetime: new Date(event.at_ms).toISOString() }), make('span', event.text));
      return item;
    }));
    by('events').hidden = events.length === 0;
    by('quiet').hidden = events.length > 0;
  }
  if (isNew.length > 0) announce(isNew.slice(0, 3).reverse().map(({ text }) => text).join('. '));
  newest = { id: events[0]?.id ?? 0, run };
}

/** Said by a screen reader when it has nothing else to say. */
function announce(text) {
  write(by('announcer'), text);
}

function showTables({ servers, gateways, gateways_more: more, sentinels, broker, node }) {
  rows('servers', servers.map((server) => [server.address, words.role(server, broker.kind), words.link(server), words.behind(server)]));
  const others = gateways.map((gateway) => [gateway.name, words.gateway(gateway)]);
  const rest = more > 0 ? [[`${words.count(more)} more`, 'not listed']] : [];
  rows('gateways', [[node.name, node.ready ? 'this node' : 'this node, not ready'], ...others, ...rest]);
  rows('sentinels', sentinels.map((sentinel) => [sentinel.address, words.sentinel(sentinel)]));
}

function rows(id, lines) {
  const table = by(id);
  table.hidden = lines.length === 0;
  const text = JSON.stringify(lines);
  if (table.dataset.text === text) return;
  table.dataset.text = text;
  const labels = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
  // A narrow page shows rows as blocks: the roles keep the table one.
  table.tBodies[0].replaceChildren(...lines.map(([head, ...cells]) => {
    const row = make('tr', '', { role: 'row' });
    const makeCell = (cell, at) => make('td', cell, { role: 'cell', 'data-label': labels[at + 1] });
    row.append(make('th', head, { role: 'rowheader', scope: 'row' }), ...cells.map(makeCell));
    return row;
  }));
}

function away() {
  if (document.body.classList.contains('away')) return;
  document.body.classList.add('away');
  by('state').dataset.state = 'away';
  write(by('state'), 'No answer');
  const since = last ? ` since ${words.time(last.at_ms)}` : '';
  write(by('sentence'), `This node does not answer${since}. What is shown was true then; another node may know more.`);
  document.title = 'No answer · Texto';
  announce(by('sentence').textContent);
}

/** Follows the stream. When there is none (too many look, or the node drains), the node is asked again and again. */
function follow() {
  stop();
  streamAgain = Date.now() + STREAM_AGAIN;
  source = new EventSource('status/events');
  source.addEventListener('status', (event) => {
    arm();
    show(JSON.parse(event.data));
  });
  source.onerror = poll;
  arm();
}

function arm() {
  clearTimeout(watchdog);
  watchdog = setTimeout(poll, SILENCE);
}

function stop() {
  source?.close();
  source = null;
  clearTimeout(watchdog);
  clearTimeout(polling);
}

async function poll() {
  stop();
  const began = Date.now();
  try {
    const response = await fetch('status.json', { cache: 'no-store', signal: AbortSignal.timeout(SILENCE) });
    if (!response.ok) throw new Error(response.statusText);
    show(await response.json());
  } catch {
    away();
  }
  const isServing = last?.node.lifecycle === 'serving' && !document.body.classList.contains('away');
  const wantsStream = isServing && began >= streamAgain;
  polling = setTimeout(wantsStream ? follow : poll, POLL);
}

// Nobody looks: the node need not make anything.
document.addEventListener('visibilitychange', () => (document.hidden ? stop() : follow()));
new ResizeObserver(draw).observe(by('picture').parentElement);
follow();
