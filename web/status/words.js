// Owns the words and numbers of the status page: what a state is called, and how an amount is written. No document here.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });

export const count = (value) => (value === null || value === undefined ? '–' : whole.format(value));

export const rate = (value) => (value < 10 ? fine.format(value) : whole.format(value));

export function bytes(value) {
  let amount = value;
  for (const unit of ['B', 'KB', 'MB']) {
    if (amount < 1000) return `${unit === 'B' ? whole.format(amount) : fine.format(amount)} ${unit}`;
    amount /= 1000;
  }
  return `${fine.format(amount)} GB`;
}

export const milliseconds = (value) => (value < 1000 ? `${fine.format(value)} ms` : `${fine.format(value / 1000)} s`);

export function duration(seconds) {
  for (const [unit, size] of [['d', 86400], ['h', 3600], ['min', 60]]) {
    if (seconds >= size) return `${whole.format(Math.floor(seconds / size))} ${unit}`;
  }
  return `${whole.format(Math.floor(seconds))} s`;
}

/** A time of today by the clock alone, another with its day. */
export function time(milliseconds, now = Date.now()) {
  const at = new Date(milliseconds);
  const isToday = at.toDateString() === new Date(now).toDateString();
  return isToday ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}

/** What the node's own state, or Redis', is called, and by which colour it is known. */
export function state({ node, broker }) {
  if (node.lifecycle !== 'serving') return { state: 'motion', text: node.lifecycle === 'draining' ? 'Draining' : 'Leaving' };
  if (broker.kind === 'embedded') return { state: 'calm', text: 'One node' };
  return {
    calm: { state: 'calm', text: 'Calm' },
    motion: { state: 'motion', text: 'Motion' },
    failover: { state: 'failover', text: 'Failover' },
    masterless: { state: 'outage', text: 'No master' },
    outage: { state: 'outage', text: 'No Redis' },
  }[broker.movement];
}

/** The picture in a sentence or two. */
export function sentence(status) {
  const { broker, servers, sentinels, gateways } = status;
  if (broker.kind === 'embedded') return 'One node with the embedded broker: there is no Redis, and no other gateway.';
  const master = broker.master ?? 'nobody';
  const going = {
    calm: `Messages go to the master ${master} alone.`,
    motion: `The master ${master} was in doubt a moment ago: messages go to every server that can be reached.`,
    failover: `The Sentinels replace the master: messages go to every server that can be reached.`,
    masterless: `The master ${master} is away, and no majority of the Sentinels answers: nobody can be promoted. Messages go by the replicas.`,
    outage: 'No Redis can be reached: messages wait until their deadline, and sessions stay.',
  }[broker.movement];
  const of = (some, all, what) => (all ? `${some} of ${all} ${what}` : '');
  const parts = [
    of(servers.filter((server) => server.link === 'synced').length, servers.length, 'Redis servers linked'),
    of(sentinels.filter((sentinel) => sentinel.reachable).length, sentinels.length, 'Sentinels answer'),
    of(gateways.filter(({ life }) => life === 'alive').length, gateways.length, 'other gateways alive'),
  ];
  return `${going} ${parts.filter(Boolean).join(', ')}.`;
}

/** What a Redis server is. */
export function role(server, kind) {
  if (server.is_master && server.role === 'replica') return kind === 'sentinel' ? 'replica, but master for the Sentinels' : 'replica';
  if (!server.expected && kind === 'sentinel') return server.is_master ? 'master, dead for the Sentinels' : 'dead for the Sentinels';
  if (server.role === 'master' && !server.is_master) return 'calls itself master';
  return server.role ?? (server.is_master ? 'master' : 'unknown');
}

export function link(server) {
  if (server.link === 'synced') return 'synced';
  if (server.link === 'replaying') return 'subscribing';
  return server.reason ? `not connected: ${server.reason}` : 'not connected';
}

/** How far a replica is behind. */
export function behind(server) {
  if (server.role !== 'replica') return '–';
  const lag = server.behind_bytes === null ? '' : bytes(server.behind_bytes);
  if (server.follows === false) return `${lag} no master`.trim();
  return lag || 'not known';
}

/** How a box is marked: by its shape and its colour. */
export const serverMark = (server) => (server.link === 'connecting' ? 'bad' : server.link === 'synced' && server.expected ? 'good' : 'half');

export const gatewayMark = ({ life }) => ({ alive: 'good', leaving: 'half', silent: 'half', gone: 'bad', unknown: 'unknown' })[life];

export const sentinelMark = ({ reachable }) => (reachable ? 'good' : 'bad');

export function gateway({ life, silent_seconds: silent }) {
  const since = duration(silent);
  return {
    alive: 'alive',
    leaving: 'drains',
    silent: `silent for ${since}`,
    gone: `gone, last heard ${since} ago`,
    unknown: 'not known: nobody is heard',
  }[life];
}

export const sentinel = ({ reachable, reason }) => (reachable ? 'answers' : reason ? `does not answer: ${reason}` : 'is being asked');
