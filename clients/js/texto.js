/**
 * A client of the Texto protocol, version 1, for browsers and Node, whose session outlives its connection.
 * How to use it: texto.d.ts, README.md.
 */

/** Milliseconds over which clients come back, by close code: a node that drains spreads them itself. */
const PAUSES = { 1001: 250, 1012: 250, 1013: 5_000 };
const BROKEN_PAUSE = 1_000;
const LONGEST_PAUSE = 15_000;
const LONGEST_ASKED = 60_000;
const GREETING_PATIENCE = 10_000;
const ASK_PATIENCE = 5_000;
const ANSWER_PATIENCE = 20_000;
const SEND_PATIENCE = 30_000;
const ACK_EVERY = 64;
const ACK_AFTER = 1_000;
/** Sends that a server takes before it has answered the first. */
const MOST_OPEN = 64;
const MOST_WAITING = 1024;
const MOST_SEEN = 2048;
/** How long a page waits for the one before it, in the same tab. */
const HOLD_PATIENCE = 500;
/** Longer timers fire at once. */
const LONGEST_TIMER = 2 ** 31 - 1;
const LOST = "the session was lost before an answer; the message may have arrived";
/** Close codes after which nobody connects again. */
const FINAL = { 4001: "elsewhere", 4003: "credentials" };

/** Why a message was not sent. */
export class TextoError extends Error {
  constructor(code, description) {
    super(`${code}: ${description}`);
    this.name = "TextoError";
    this.code = code;
    this.description = description;
  }
}

/** A version 4 UUID, in pages without a secure context too. */
export function uuid() {
  const random = (digit) => (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16);
  return crypto.randomUUID?.() ?? "10000000-1000-4000-8000-100000000000".replace(/[018]/g, random);
}

/** The address of the gateway that served this page. */
function ownUrl() {
  if (!globalThis.location) throw new TypeError("where to? new Texto('wss://HOST/v1/texto')");
  return new URL("/v1/texto", location.href);
}

/** Whether this page has `name` to itself, from now until it is left. */
async function hold(name) {
  if (!globalThis.navigator?.locks) return true;
  return new Promise((resolve) => {
    const held = () => new Promise(() => resolve(true));
    navigator.locks.request(name, { signal: AbortSignal.timeout(HOLD_PATIENCE) }, held).catch(() => resolve(false));
  });
}

/** Milliseconds that the server asks to wait, or 0. HTTP tells why a WebSocket was refused. */
async function askedPause(url) {
  try {
    const health = new URL("/healthz", url.replace("ws", "http"));
    const answer = await fetch(health, { cache: "no-store", signal: AbortSignal.timeout(ASK_PATIENCE) });
    const seconds = answer.ok ? 0 : answer.headers.get("Retry-After");
    return Math.min(1_000 * seconds, LONGEST_ASKED) || 0;
  } catch {
    return 0;
  }
}

export class Texto {
  /**
   * @param {string|string[]} [url] of several, the next one after each failure
   * @param {import("./texto.js").TextoOptions} [options]
   */
  constructor(url = ownUrl(), options = {}) {
    this.urls = [url].flat().map((one) => {
      const url = new URL(one);
      url.searchParams.set("register", "1");
      return url.href.replace(/^http/, "ws");
    });
    this.quiet = options.quiet ?? 10_000;
    this.signPatience = options.signPatience ?? 5_000;
    // Only pages have tabs.
    this.keep = options.keep === undefined && globalThis.document ? "texto" : options.keep;
    this.credentials = options.credentials;
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.WebSocket) throw new TypeError("no WebSocket here: Node has one since 22");
    this.clientId = null;
    this.state = "closed";
    this.onreceive = () => {};
    this.onstate = () => {};
    this.socket = null;
    this.wanted = false;
    this.pause = 0;
    this.refusals = 0;
    /** What the session is resumed by, and the highest number that has come in it. */
    this.token = null;
    this.seq = 0;
    /** For how many milliseconds a message may be written again. */
    this.window = 0;
    /** Messages without an answer, in order; and how many of these are written. */
    this.sends = new Map();
    this.open = 0;
    this.seen = new Set();
    this.unacknowledged = 0;
  }

  /** Connects, and stays connected until `close`. */
  connect() {
    if (this.wanted) return;
    this.wanted = true;
    this.state = "connecting"; // Told by dial.
    this.recalled ??= this.recall();
    this.recalled.then(() => this.wanted && !this.socket && this.dial());
    globalThis.addEventListener?.("online", this.hurry = () => this.retryNow());
  }

  retryNow() {
    if (this.state !== "waiting") return;
    clearTimeout(this.timer);
    this.dial();
  }

  /** Ends the session; unanswered sends fail. */
  close() {
    if (this.wanted) this.end(1000);
  }

  /**
   * Resolves when the receiver's node has it, or rejects with a TextoError.
   * @param {string} receiverId @param {string} text @returns {Promise<void>}
   */
  send(receiverId, text) {
    if (!this.wanted) return Promise.reject(new TextoError("EDISCONNECTED", "not connected"));
    if (this.sends.size >= MOST_WAITING) return Promise.reject(new TextoError("EAGAIN", "too many messages wait"));
    return new Promise((resolve, reject) => {
      const id = uuid();
      const message = { data: { receiver_id: receiverId, text }, resolve, reject, isOpen: false, written: null };
      message.timer = setTimeout(() => this.fail(id, "ETIMEOUT", "no connection for too long"), SEND_PATIENCE);
      this.sends.set(id, message);
      if (this.state === "connected") this.pump();
    });
  }

  /** Writes what waits, as far as the server takes it. */
  pump() {
    for (const [id, message] of this.sends) {
      if (this.open >= MOST_OPEN) return;
      if (message.isOpen) continue;
      message.isOpen = true;
      message.written ??= Date.now();
      this.open += 1;
      clearTimeout(message.timer);
      // The server answers every send.
      message.timer = setTimeout(() => this.drop(), ANSWER_PATIENCE);
      this.write("send", id, message.data);
    }
  }

  /** Takes a message out of those that wait for their answer. */
  settle(id) {
    const message = this.sends.get(id);
    if (!message) return null;
    clearTimeout(message.timer);
    this.sends.delete(id);
    if (message.isOpen) this.open -= 1;
    return message;
  }

  fail(id, code, description) {
    this.settle(id)?.reject(new TextoError(code, description));
  }

  /** The connection is gone. What was written will be written again, as long as the server knows it again. */
  putBack(window = this.window) {
    for (const [id, message] of this.sends) {
      if (message.written === null) continue;
      const left = window - (Date.now() - message.written);
      const fail = () => this.fail(id, "EDISCONNECTED", LOST);
      if (left <= 0) {
        fail();
      } else {
        clearTimeout(message.timer);
        message.timer = setTimeout(fail, Math.min(left, LONGEST_TIMER));
        message.isOpen = false;
      }
    }
    this.open = 0;
  }

  write(kind, id, data) {
    this.socket.send(JSON.stringify({ client_id: this.clientId, id, kind, data }));
  }

  become(state, more = {}) {
    this.state = state;
    this.onstate({ state, clientId: this.clientId, ...more });
  }

  async show() {
    return this.credentials ? { token: await this.credentials() } : {};
  }

  dial() {
    const socket = new this.WebSocket(this.urls[0]);
    this.socket = socket;
    let isOpen = false;
    this.greeted = false;
    this.become("connecting");
    const patience = setTimeout(() => socket === this.socket && this.drop(), GREETING_PATIENCE);
    const shown = this.show().catch(() => null);
    socket.onopen = async () => {
      isOpen = true;
      const more = await shown;
      if (socket !== this.socket) return;
      if (more === null) return this.drop(); // Perhaps later.
      const wish = this.token ? { resume: this.token, seq: this.seq } : { resumable: true };
      // A server without such sessions has greeted, and refuses this: that is of no harm.
      this.write("registration", uuid(), { ...wish, ...more });
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.heard();
      let frame;
      try {
        frame = JSON.parse(data);
      } catch {
        return;
      }
      if (frame.kind === "connection") clearTimeout(patience);
      this.take(frame);
    };
    const closed = ({ code = 1006, reason }) => {
      clearTimeout(patience);
      if (socket !== this.socket) return;
      this.refusals = isOpen ? 0 : this.refusals + 1;
      // Credentials that have expired are replaced; what is refused at once would be refused again.
      const isOver = code === 4003 && this.credentials && this.greeted;
      if (FINAL[code] && !isOver) this.end(code, socket.flaw ?? reason);
      else this.lost(code);
    };
    socket.onclose = closed;
    // Node 22 says no more when a handshake fails.
    socket.onerror = () => isOpen || closed({});
  }

  heard() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => {
      this.write("registration", uuid(), null);
      this.watch = setTimeout(() => this.drop(), this.signPatience);
    }, this.quiet);
  }

  /** Gives up a connection that leads nowhere. */
  drop() {
    const socket = this.socket;
    if (!socket) return;
    this.lost(1006);
    socket.close();
  }

  take({ kind, id, data }) {
    if (kind === "connection") {
      this.greet(data);
    } else if (kind === "receive") {
      if (!this.isNew(id, data.seq)) return;
      this.onreceive({ id, senderId: data.sender_id, text: data.text });
    } else if (kind === "ack" || kind === "error") {
      if (data?.code === "EAUTH") this.socket.flaw = data.description;
      if (kind === "ack") this.settle(id)?.resolve();
      else this.fail(id, data.code, data.description);
      this.pump();
    }
  }

  /** The answer to the registration; later, to a question for a sign of life or a newer token. */
  greet({ client_id: clientId, resumed = false, resume, credentials }) {
    const isFirst = !this.greeted;
    if (!isFirst && clientId !== this.clientId) return;
    this.greeted = true;
    const before = this.clientId;
    this.clientId = clientId;
    this.token = resume?.token ?? null;
    this.window = resume?.window_ms ?? 0;
    if (isFirst && !resumed) this.seq = 0;
    this.remember();
    clearTimeout(this.renewal);
    // A connection may outlast the token, and the credentials, that it began with.
    const ends = resume ? [resume.expires_ms / 2] : [];
    if (credentials && this.credentials) ends.push(Math.max(credentials.expires_ms * 0.8, 1_000));
    if (ends.length > 0) this.renewal = setTimeout(() => this.renew(), Math.min(...ends, LONGEST_TIMER));
    if (!isFirst) return;
    // Only now: a server that accepts and drops is not hammered.
    this.pause = 0;
    // The server is to know that the newer token has come.
    if (resume) this.acknowledge();
    // For somebody else the server knows them not.
    this.putBack(clientId === before ? this.window : 0);
    this.become("connected", { resumed, missing: before !== null && !resumed });
    if (this.state === "connected") this.pump();
  }

  /** Asks for a newer token, by fresh credentials. */
  async renew() {
    const socket = this.socket;
    const more = await this.show().catch(() => ({}));
    if (socket === this.socket && socket?.readyState === 1) this.write("registration", uuid(), more);
  }

  /** Whether a message has not come before; the server hears that it has come. */
  isNew(id, seq) {
    if (seq === undefined) {
      this.write("ack", id, null);
      if (this.seen.has(id)) return false;
      this.seen.add(id);
      if (this.seen.size > MOST_SEEN) this.seen.delete(this.seen.values().next().value);
      return true;
    }
    this.unacknowledged += 1;
    if (this.unacknowledged === 1) this.ackTimer = setTimeout(() => this.acknowledge(), ACK_AFTER);
    const isNew = seq > this.seq;
    if (isNew) {
      this.seq = seq;
      this.remember();
    }
    if (this.unacknowledged >= ACK_EVERY) this.acknowledge();
    return isNew;
  }

  acknowledge() {
    clearTimeout(this.ackTimer);
    this.unacknowledged = 0;
    this.write("ack", uuid(), { seq: this.seq });
  }

  leave() {
    this.socket = null;
    this.unacknowledged = 0;
    for (const timer of [this.watch, this.ackTimer, this.renewal, this.timer]) clearTimeout(timer);
    this.timer = null;
  }

  async lost(code) {
    this.leave();
    if (code === 1009) this.refuseLongest();
    this.putBack();
    const url = this.urls[0];
    this.urls.push(this.urls.shift());
    // Full jitter, for thousands may be coming back at the same moment.
    const most = Math.max(this.pause, PAUSES[code] ?? BROKEN_PAUSE);
    this.pause = Math.min(most * 2, LONGEST_PAUSE);
    let retryIn = Math.round(most * Math.random());
    if (code === 1013 || this.refusals > this.urls.length) {
      const asking = (this.timer = {});
      if (this.state === "connected") this.become("connecting");
      retryIn += await askedPause(url);
      if (this.timer !== asking) return;
    }
    this.timer = setTimeout(() => this.dial(), retryIn);
    this.become("waiting", { retryIn });
  }

  /** A frame was over the server's limit, and would be so again. */
  refuseLongest() {
    const open = [...this.sends].filter(([, { isOpen }]) => isOpen);
    const [longest] = open.sort(([, a], [, b]) => b.data.text?.length - a.data.text?.length);
    if (longest) this.fail(longest[0], "EMSGSIZE", "the text is too long for the server");
  }

  /** The session is over. */
  end(code, description) {
    const socket = this.socket;
    this.wanted = false;
    this.leave();
    socket?.close(1000);
    globalThis.removeEventListener?.("online", this.hurry);
    this.token = this.clientId = null;
    this.seq = 0;
    this.remember();
    for (const id of this.sends.keys()) this.fail(id, "EDISCONNECTED", LOST);
    this.become("closed", { reason: FINAL[code], description });
  }

  /** Takes up the session of this tab before it was loaded anew. A tab that was duplicated has the storage, too. */
  async recall() {
    if (!this.keep) return;
    let kept;
    try {
      kept = JSON.parse(sessionStorage.getItem(this.keep));
    } catch {} // No storage here, or not ours.
    this.tab = kept?.tab ?? uuid();
    if (await hold(`${this.keep}:${this.tab}`)) {
      if (kept?.token) ({ token: this.token, clientId: this.clientId, seq: this.seq } = kept);
      return;
    }
    this.tab = uuid();
    await hold(`${this.keep}:${this.tab}`);
  }

  remember() {
    if (!this.keep) return;
    const { tab, token, clientId, seq } = this;
    try {
      sessionStorage.setItem(this.keep, JSON.stringify({ tab, token, clientId, seq }));
    } catch {} // It works without, until the page is loaded anew.
  }
}
