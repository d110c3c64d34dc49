/**
 * A client of the Texto protocol, version 1, whose session outlives its connection: the same id and no message missed
 * over broken connections, restarts of servers, and the page loaded anew. No dependencies; works in any page:
 *
 *     import { Texto } from "/texto.js";
 *     const texto = new Texto();
 *     texto.onreceive = ({ senderId, text }) => console.log(senderId, text);
 *     texto.onstate = ({ state, clientId }) => console.log(state, clientId);
 *     texto.connect();
 *     await texto.send(receiverId, "hello");
 */

/** Milliseconds. A node that drains spreads its clients itself, and says so: they come back over this time. */
const FIRST_PAUSE = 250;
/** After a connection that broke without a word: a node died, perhaps, and everybody else is coming back as well. */
const BROKEN_PAUSE = 1_000;
const LONGEST_PAUSE = 15_000;
/** The longest pause that a server can ask for. */
const LONGEST_ASKED = 60_000;
const GREETING_PATIENCE = 10_000;
/** Longer than any server takes: it answers within its own send deadline. */
const ANSWER_PATIENCE = 20_000;
/** How long a message waits for a connection. */
const SEND_PATIENCE = 30_000;
/** Silence after which the server is asked for a sign of life, and how long that may take. Browsers can't ping. */
const QUIET = 10_000;
const SIGN_PATIENCE = 5_000;
/** What has come is acknowledged at so many messages, or after so long. */
const ACK_EVERY = 64;
const ACK_AFTER = 1_000;
/** Sends that a server takes before it has answered the first; more wait here. */
const MOST_OPEN = 64;
const MOST_WAITING = 1024;
/** How many ids are remembered where messages have no numbers, to drop one that comes twice. */
const REMEMBERED = 2048;
/** How long a page waits for the one before it, in the same tab, to be gone. */
const HOLD_PATIENCE = 500;
/** Longer delays make a timer fire at once. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** Close codes after which it is of no use to connect again. */
const FINAL = { 4001: "elsewhere", 4003: "credentials" };

/** Why a message was not sent. `code` is the server's, or EDISCONNECTED, ETIMEOUT, EAGAIN. */
export class TextoError extends Error {
  /** @param {string} code @param {string} description */
  constructor(code, description) {
    super(`${code}: ${description}`);
    this.name = "TextoError";
    this.code = code;
    this.description = description;
  }
}

/** A version 4 UUID, in pages without a secure context too. */
export function uuid() {
  if (globalThis.crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** The address of the gateway that served this page. */
function defaultUrl() {
  const url = new URL("/v1/texto", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

/**
 * Whether this page has `name` to itself, from now until it is left. (Without a secure context nobody can say: the
 * session of a tab that is duplicated goes on in the newer one then, and the older is told "elsewhere".)
 */
function hold(name) {
  return new Promise((resolve) => {
    if (!globalThis.navigator?.locks) return resolve(true);
    const held = () => {
      resolve(true);
      return new Promise(() => {});
    };
    navigator.locks.request(name, { signal: AbortSignal.timeout(HOLD_PATIENCE) }, held).catch(() => resolve(false));
  });
}

/**
 * Milliseconds that the server asks to wait. A browser does not tell why a WebSocket was refused, so the same server is
 * asked by HTTP; 0 if it says nothing.
 */
async function askedPause(url) {
  try {
    const health = new URL("/healthz", url);
    health.protocol = health.protocol === "wss:" ? "https:" : "http:";
    const answer = await fetch(health, { cache: "no-store", signal: AbortSignal.timeout(SIGN_PATIENCE) });
    const seconds = answer.ok ? 0 : Number(answer.headers.get("Retry-After"));
    return Math.min(1_000 * seconds, LONGEST_ASKED) || 0;
  } catch {
    return 0;
  }
}

export class Texto {
  /**
   * @param {string} [url] of the WebSocket; by default on the host of the page.
   * @param {{quiet?: number, signPatience?: number, keep?: ?string}} [options] milliseconds of silence after which the
   * server is asked for a sign of life, and how long that may take before the connection is given up; and under which
   * name the tab keeps the session for when the page is loaded anew (null: not at all). Two clients of one page need two.
   */
  constructor(url = defaultUrl(), { quiet = QUIET, signPatience = SIGN_PATIENCE, keep = "texto" } = {}) {
    this.url = url;
    this.quiet = quiet;
    this.signPatience = signPatience;
    this.keep = keep;
    /** The id under which others reach this client. @type {?string} */
    this.clientId = null;
    /** "connecting" | "connected" | "waiting" | "closed" */
    this.state = "closed";
    /** @type {(message: {id: string, senderId: string, text: string}) => void} */
    this.onreceive = () => {};
    /**
     * With "connected": `resumed` says that the session goes on and nothing was missed; `missing` that it was another
     * one before, or messages may be missing. With "waiting": `retryIn` milliseconds. With "closed": `reason`, if it was
     * the server: "elsewhere" (the session goes on in another tab), "credentials".
     * @type {(change: {state: string, clientId: ?string, resumed?: boolean, missing?: boolean, retryIn?: number,
     * reason?: string}) => void}
     */
    this.onstate = () => {};
    this.socket = null;
    this.wanted = false;
    this.pause = FIRST_PAUSE;
    this.refusals = 0;
    /** What a session is resumed by, a secret; and the highest number that has come in it. */
    this.token = null;
    this.seq = 0;
    /** How long a message that was written may be written again, in milliseconds. */
    this.window = 0;
    /** This tab's own name. */
    this.tab = null;
    /** Messages without an answer, in order, those that were written first; and how many these are. */
    this.sends = new Map();
    this.open = 0;
    this.seen = new Set();
    this.unacknowledged = 0;
  }

  /** Connects, and stays connected until `close`. */
  connect() {
    if (this.wanted) return;
    this.wanted = true;
    this.become("connecting");
    this.recalled ??= this.recall();
    this.recalled.then(() => this.wanted && !this.socket && this.dial());
    globalThis.addEventListener?.("online", this.hurry = () => this.retryNow());
  }

  /** Tries again now instead of after the pause. */
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
   * Sends a text. Resolves when the receiver's node has it (two of them, if the receiver can resume). Without a
   * connection it waits for one, and what was not answered is sent again in the same order; it is shown once.
   * @param {string} receiverId @param {string} text @returns {Promise<void>}
   * @throws {TextoError} (as a rejection) with the server's code; EDISCONNECTED when the session was lost before the
   * answer (it may or may not have arrived); ETIMEOUT without a connection for half a minute; EAGAIN when too many wait.
   */
  send(receiverId, text) {
    if (!this.wanted) return Promise.reject(new TextoError("EDISCONNECTED", "there is no connection"));
    if (this.sends.size >= MOST_WAITING) return Promise.reject(new TextoError("EAGAIN", "too many messages wait"));
    return new Promise((resolve, reject) => {
      const id = uuid();
      const message = { data: { receiver_id: receiverId, text }, resolve, reject, isOpen: false, written: null };
      message.timer = setTimeout(() => {
        this.settle(id)?.reject(new TextoError("ETIMEOUT", "there was no connection for too long"));
      }, SEND_PATIENCE);
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
      // The server answers every send: a connection on which it does not leads nowhere.
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

  /**
   * The connection that messages were written to is gone. They will be written again, as long as the server knows them
   * again: those that are shown are not shown twice.
   */
  putBack(window = this.window) {
    for (const [id, message] of this.sends) {
      if (message.written === null) continue;
      const left = window - (Date.now() - message.written);
      const fail = () => this.settle(id)?.reject(
        new TextoError("EDISCONNECTED", "the connection was lost before an answer; the message may have arrived"));
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

  dial() {
    const url = new URL(this.url);
    url.searchParams.set("register", "1");
    const socket = new WebSocket(url);
    this.socket = socket;
    let isOpen = false;
    this.greeted = false;
    this.become("connecting");
    const patience = setTimeout(() => socket === this.socket && this.drop(), GREETING_PATIENCE);
    socket.onopen = () => {
      isOpen = true;
      if (socket !== this.socket) return;
      // A server that knows no sessions of this kind has greeted, and refuses this: that is of no harm.
      this.write("registration", uuid(), this.token ? { resume: this.token, seq: this.seq } : { resumable: true });
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
    socket.onclose = ({ code }) => {
      clearTimeout(patience);
      if (socket !== this.socket) return;
      this.refusals = isOpen ? 0 : this.refusals + 1;
      if (FINAL[code]) this.end(code);
      else this.lost(code);
    };
  }

  /** Something came: the connection lives, for now. */
  heard() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => {
      this.write("registration", uuid(), null);
      this.watch = setTimeout(() => this.drop(), this.signPatience);
    }, this.quiet);
  }

  /** Gives up a connection that leads nowhere, without waiting for it to close. */
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
      const message = this.settle(id);
      if (!message) return;
      if (kind === "ack") message.resolve();
      else message.reject(new TextoError(data.code, data.description));
      this.pump();
    }
  }

  /** Who this is: the answer to the registration; later, to a question for a sign of life or a newer token. */
  greet({ client_id: clientId, resumed = false, resume }) {
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
    if (resume) {
      // A connection may outlast the token that it began with.
      const renew = () => this.write("registration", uuid(), null);
      this.renewal = setTimeout(renew, Math.min(resume.expires_ms / 2, LONGEST_TIMER));
    }
    if (!isFirst) return;
    // Only now is the connection known to be of use: a server that accepts and drops is not hammered.
    this.pause = FIRST_PAUSE;
    // For somebody else the server would not know them again.
    this.putBack(clientId === before ? this.window : 0);
    this.become("connected", { resumed, missing: before !== null && !resumed });
    if (this.state === "connected") this.pump();
  }

  /** Whether a message has not come before; and that it has come, for the server to know. */
  isNew(id, seq) {
    if (seq === undefined) {
      this.write("ack", id, null);
      if (this.seen.has(id)) return false;
      this.seen.add(id);
      if (this.seen.size > REMEMBERED) this.seen.delete(this.seen.values().next().value);
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

  /** Leaves the connection as it is, whatever that is. */
  leave() {
    this.socket = null;
    this.unacknowledged = 0;
    for (const timer of [this.watch, this.ackTimer, this.renewal, this.timer]) clearTimeout(timer);
  }

  lost(code) {
    this.leave();
    this.putBack();
    // A node that drains or stops (1012, 1001) says so, and spreads it itself: go soon. One that died did not. Full
    // jitter, for thousands may be coming back at the same moment.
    const told = code === 1012 || code === 1001;
    const most = told ? this.pause : Math.max(this.pause, BROKEN_PAUSE);
    this.pause = Math.min(most * 2, LONGEST_PAUSE);
    const retryIn = Math.round(most * Math.random());
    this.wait(retryIn);
    if (this.refusals > 1) this.obey(retryIn, this.timer);
  }

  wait(retryIn) {
    this.timer = setTimeout(() => this.dial(), retryIn);
    this.become("waiting", { retryIn });
  }

  /** Waits longer where the server asks for it. */
  async obey(retryIn, timer) {
    const asked = await askedPause(this.url);
    if (asked === 0 || this.state !== "waiting" || this.timer !== timer) return;
    clearTimeout(timer);
    this.wait(asked + retryIn);
  }

  /** The session is over, by this side (1000) or the other. */
  end(code) {
    const socket = this.socket;
    this.wanted = false;
    this.leave();
    socket?.close(1000);
    globalThis.removeEventListener?.("online", this.hurry);
    this.token = this.clientId = null;
    this.seq = 0;
    this.remember();
    for (const id of [...this.sends.keys()]) {
      this.settle(id).reject(new TextoError("EDISCONNECTED", "the session has ended; the message may have arrived"));
    }
    this.become("closed", FINAL[code] ? { reason: FINAL[code] } : {});
  }

  /**
   * Takes up the session that this tab had before the page was loaded anew. The storage of a tab that was duplicated is
   * a copy: there another tab lives by that name, and this one begins anew.
   */
  async recall() {
    if (this.keep === null) return;
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem(this.keep));
    } catch {
      // No storage here, or not ours.
    }
    this.tab = kept?.tab ?? uuid();
    if (await hold(`${this.keep}:${this.tab}`)) {
      if (kept?.token) ({ token: this.token, clientId: this.clientId, seq: this.seq } = kept);
      return;
    }
    this.tab = uuid();
    await hold(`${this.keep}:${this.tab}`);
  }

  remember() {
    if (this.keep === null) return;
    const { tab, token, clientId, seq } = this;
    try {
      sessionStorage.setItem(this.keep, JSON.stringify({ tab, token, clientId, seq }));
    } catch {
      // It works without, until the page is loaded anew.
    }
  }
}
