// Owns the picture: gateways, Redis servers, Sentinels, and what is between them, as SVG. Where everything stands follows
// from the status and the width alone (`layout`); what stays keeps its element, so that only what changes moves.

import * as words from './words.js';

const SVG = 'http://www.w3.org/2000/svg';
const GAP = 16;
const BOX = { least: 148, most: 236, height: 60, narrow: 52 };
const LABEL = 24;
/** Between the tiers: room for the wires. */
const WIRES = 54;
const RAIL = 26;
/** On a narrow page so few have a line each, and more of them half a line. */
const FEW = 4;
/** Other gateways that are drawn; the tables have all. */
const MOST_GATEWAYS = 23;

/** The boxes and wires of a status, for a picture of this width. */
export function layout(status, width) {
  const place = new Place(width);
  const { broker, node } = status;
  const me = { id: 'me', title: node.name, note: 'this node', mark: node.ready ? 'good' : 'half', isMe: true };
  const others = status.gateways.slice(0, MOST_GATEWAYS).map((gateway) => (
    { id: `gateway ${gateway.tag}`, title: gateway.name, note: words.gateway(gateway), mark: words.gatewayMark(gateway) }));
  const more = status.gateways.length - others.length + status.gateways_more;
  if (more > 0) others.push({ id: 'more', title: `${more} more`, note: 'in the table', mark: 'unknown' });

  place.label('Gateways');
  const columns = place.columns();
  // Wires go down to a row of servers, or along a rail beside a column of them.
  const fits = !place.isNarrow && status.servers.length <= columns;
  if (fits) {
    // In the middle of the last row, where its wires are in nobody's way.
    const last = others.length % columns;
    const before = others.length - last + Math.floor(last / 2);
    place.grid([...others.slice(0, before), me, ...others.slice(before)], columns);
  } else {
    place.grid(others, place.isNarrow ? narrow(others) : columns);
    place.grid([me], 1);
  }
  if (status.servers.length > 0) {
    const boxes = status.servers.map((server) => serverBox(server, broker.kind));
    place.space(fits ? WIRES - LABEL : 4);
    place.label('Redis', fits ? 0 : RAIL);
    if (fits) place.grid(boxes, columns);
    else boxes.forEach((box) => place.grid([box], 1, RAIL));
    const mine = place.box('me');
    for (const server of status.servers) {
      const box = place.box(`server ${server.address}`);
      const kind = server.link === 'connecting' ? 'lost' : server.carries ? 'carries' : 'listens';
      place.wire(`link ${server.address}`, kind, fits ? down(mine, box) : along(mine, box));
    }
    const master = status.servers.find((server) => server.is_master);
    if (fits && master) {
      const from = place.box(`server ${master.address}`);
      for (const server of status.servers.filter((other) => other !== master && other.role === 'replica')) {
        const path = under(from, place.box(`server ${server.address}`));
        place.wire(`replication ${server.address}`, server.follows ? 'replicates' : 'lost', path);
      }
      place.space(LABEL);
    }
  }
  if (status.sentinels.length > 0) {
    place.space(6);
    place.label('Sentinels');
    const boxes = status.sentinels.map((sentinel) => ({
      id: `sentinel ${sentinel.address}`, title: sentinel.address, note: sentinel.reachable ? 'answers' : 'does not answer',
      mark: words.sentinelMark(sentinel),
    }));
    place.grid(boxes, place.isNarrow ? narrow(boxes) : columns);
  }
  return place.done();
}

const narrow = (boxes) => (boxes.length <= FEW ? 1 : 2);

function serverBox(server, kind) {
  let note = words.role(server, kind);
  if (server.link === 'connecting') note = server.expected || kind !== 'sentinel' ? 'not connected' : 'dead for the Sentinels';
  else if (server.role === 'replica' && server.follows === false) note = 'replica without master';
  else if (note === 'replica') note = server.behind_bytes === null ? note : `replica · ${words.behind(server)} behind`;
  return {
    id: `server ${server.address}`, title: server.address, note, mark: words.serverMark(server),
    badge: server.is_master ? 'master' : '',
  };
}

/** Boxes put down from the top. */
class Place {
  constructor(width) {
    this.width = width;
    this.isNarrow = width < 520;
    this.y = 0;
    this.boxes = [];
    this.labels = [];
    this.wires = [];
  }

  columns() {
    return Math.max(1, Math.floor((this.width + GAP) / (BOX.least + GAP)));
  }

  space(height) {
    this.y += height;
  }

  label(text, x = 0) {
    this.labels.push({ text, x: x + 1, y: this.y + 15 });
    this.y += LABEL;
  }

  grid(boxes, columns, indent = 0) {
    const gap = this.isNarrow ? 8 : GAP;
    const height = this.isNarrow ? BOX.narrow : BOX.height;
    for (let at = 0; at < boxes.length; at += columns) {
      const row = boxes.slice(at, at + columns);
      const across = this.isNarrow ? columns : row.length;
      const width = Math.min(this.isNarrow || indent ? Infinity : BOX.most, (this.width - indent - (across - 1) * gap) / across);
      const left = indent + (this.isNarrow || columns === 1 ? 0 : (this.width - indent - row.length * width - (row.length - 1) * gap) / 2);
      row.forEach((box, index) => this.boxes.push({ ...box, x: left + index * (width + gap), y: this.y, width, height }));
      this.y += height + gap;
    }
  }

  wire(id, kind, path) {
    this.wires.push({ id, kind, path });
  }

  box(id) {
    return this.boxes.find((box) => box.id === id);
  }

  done() {
    return { width: this.width, height: Math.max(0, this.y - (this.isNarrow ? 8 : GAP) + 2), boxes: this.boxes, labels: this.labels, wires: this.wires };
  }
}

const middle = (box) => box.x + box.width / 2;

function down(from, to) {
  const [x1, y1, x2, y2] = [middle(from), from.y + from.height, middle(to), to.y];
  const bend = (y2 - y1) * 0.6;
  return `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`;
}

function along(from, to) {
  return `M${10} ${from.y + from.height}V${to.y + to.height / 2 - 8}q0 8 8 8H${to.x}`;
}

function under(from, to) {
  const y = from.y + from.height;
  const depth = 18 + Math.min(14, Math.abs(middle(from) - middle(to)) / 40);
  return `M${middle(from)} ${y}C${middle(from)} ${y + depth} ${middle(to)} ${y + depth} ${middle(to)} ${y}`;
}

const MARKS = {
  good: 'M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13z',
  half: 'M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13zM8 4a4 4 0 0 1 0 8z',
  bad: 'M3 1.2L8 6.2L13 1.2L14.8 3L9.8 8L14.8 13L13 14.8L8 9.8L3 14.8L1.2 13L6.2 8L1.2 3z',
  unknown: 'M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13zM8 4a4 4 0 1 1 0 8a4 4 0 1 1 0-8z',
};

/** Draws into an SVG element, again and again. */
export class Picture {
  constructor(svg) {
    this.svg = svg;
    this.elements = new Map();
    this.layers = ['wires', 'labels', 'boxes'].map((name) => append(svg, 'g', { class: name }));
  }

  draw({ width, height, boxes, labels, wires }, isBusy) {
    set(this.svg, { width, height, viewBox: `0 0 ${width} ${height}` });
    this.svg.classList.toggle('busy', isBusy);
    const [wireLayer, labelLayer, boxLayer] = this.layers;
    const kept = new Set();
    const keep = (id, layer, make) => {
      kept.add(id);
      if (!this.elements.has(id)) this.elements.set(id, make(layer));
      return this.elements.get(id);
    };
    for (const { id, kind, path } of wires) {
      const line = keep(`wire ${id}`, wireLayer, (layer) => append(layer, 'path', {}));
      set(line, { d: path, class: `wire ${kind}` });
      if (kind !== 'carries') continue;
      set(keep(`flow ${id}`, wireLayer, (layer) => append(layer, 'path', { class: 'flow' })), { d: path });
    }
    for (const { text, x, y } of labels) {
      const label = keep(`label ${text}`, labelLayer, (layer) => append(layer, 'text', {}));
      set(label, { x, y });
      write(label, text);
    }
    for (const box of boxes) drawBox(keep(box.id, boxLayer, makeBox), box);
    for (const [id, element] of this.elements) {
      if (kept.has(id)) continue;
      element.remove();
      this.elements.delete(id);
    }
  }
}

function makeBox(layer) {
  const group = append(layer, 'g', {});
  append(group, 'title', {});
  append(group, 'rect', { rx: 12 });
  append(group, 'path', { class: 'mark', 'fill-rule': 'evenodd' });
  append(group, 'text', { class: 'name', x: 36 });
  append(group, 'text', { class: 'note', x: 36 });
  const badge = append(group, 'g', { class: 'badge' });
  append(badge, 'rect', { rx: 8, width: 54, height: 18 });
  write(append(badge, 'text', { x: 27, y: 13 }), 'master');
  return group;
}

function drawBox(group, { x, y, width, height, title, note, mark, badge, isMe }) {
  const [name, rect, shape, first, second, chip] = group.children;
  set(group, { transform: `translate(${x} ${y})`, class: `box ${mark}${badge ? ' master' : ''}${isMe ? ' me' : ''}` });
  set(rect, { width, height });
  set(shape, { d: MARKS[mark], transform: `translate(12 ${height / 2 - 17})` });
  set(first, { y: height / 2 - 4 });
  set(second, { y: height / 2 + 15 });
  write(name, `${title}: ${note}`);
  write(first, fit(title, (width - 46) / 7.9));
  write(second, fit(note, (width - 44) / 6.6));
  set(chip, { transform: `translate(${width - 62} -9)`, visibility: badge ? 'visible' : 'hidden' });
}

/** As much of a text as has room; the end of an address says more than its middle. */
function fit(text, room) {
  const most = Math.max(4, Math.floor(room));
  if (text.length <= most) return text;
  const end = Math.floor((most - 1) / 2);
  return `${text.slice(0, most - 1 - end)}…${text.slice(text.length - end)}`;
}

/** A line of the last values; the highest is at the top. */
export function sparkline(svg, values) {
  const [width, height, most] = [120, 28, Math.max(...values.filter(Number.isFinite), 1e-9)];
  const step = width / 59;
  const from = width - (values.length - 1) * step;
  const at = (value, index) => `${(from + index * step).toFixed(1)} ${(height - 2 - (value / most) * (height - 5)).toFixed(1)}`;
  const points = values.map((value, index) => at(Number.isFinite(value) ? value : 0, index));
  if (!svg.firstChild) {
    append(svg, 'path', { class: 'area' });
    append(svg, 'path', { class: 'line' });
  }
  set(svg, { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none' });
  set(svg.firstChild, { d: points.length > 1 ? `M${from.toFixed(1)} ${height}L${points.join('L')}L${width} ${height}z` : '' });
  set(svg.lastChild, { d: points.length > 1 ? `M${points.join('L')}` : '' });
}

function append(parent, name, attributes) {
  const element = document.createElementNS(SVG, name);
  set(element, attributes);
  parent.append(element);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
