/**
 * A client of the Texto protocol, version 1. No dependencies; works in any page:
 *
 *     import { Texto } from "/texto.js";
 *     const texto = new Texto();
 *     texto.onreceive = ({ senderId, text }) => console.log(senderId, text);
 *     texto.onstate = ({ state, clientId }) => console.log(state, clientId);
 *     texto.connect();
 *     await texto.send(receiverId, "hello");
 */

/** Milliseconds. */
const FIRST_PAUSE = 250;
/** After a connection that broke without a word: a node died, perhaps, and everybody else is coming back as well. */
const BROKEN_PAUSE = 1_000;
const LONGEST_PAUSE = 15_000;
const GREETING_PATIENCE = 10_000;
/** Longer than any server takes: it answers within its own send deadline. */
const ANSWER_PATIENCE = 20_000;
/** Silence after which the server is asked for a sign of life, and how long that may take. Browsers can't ping. */
const QUIET = 10_000;
const SIGN_PATIENCE = 5_000;
/** How many received ids are remembered, to drop a message that comes twice. */
const REMEMBERED = 2048;

/** Why a message was not sent. `code` is the server's, or EDISCONNECTED, ETIMEOUT. */
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

export class Texto {
  /**
   * @param {string} [url] of the WebSocket; by default on the host of the page.
   * @param {{quiet?: number, signPatience?: number}} [times] milliseconds: silence after which the server is asked for
   * a sign of life, and how long that may take before the connection is given up.
   */
  constructor(url = defaultUrl(), { quiet = QUIET, signPatience = SIGN_PATIENCE } = {}) {
    this.url = url;
    this.quiet = quiet;
    this.signPatience = signPatience;
    this.watch = null;
    /** The id under which others reach this client; a new one with each connection. @type {?string} */
    this.clientId = null;
    /** "connecting" | "connected" | "waiting" | "closed" */
    this.state = "closed";
    /** @type {(message: {id: string, senderId: string, text: string}) => void} */
    this.onreceive = () => {};
    /** @type {(change: {state: string, clientId: ?string, retryIn?: number}) => void} */
    this.onstate = () => {};
    this.socket = null;
    this.wanted = false;
    this.pause = FIRST_PAUSE;
    this.timer = null;
    this.unanswered = new Map();
    this.seen = new Set();
  }

  /** Connects, and stays connected until `close`. */
  connect() {
    if (this.wanted) return;
    this.wanted = true;
    this.open();
    globalThis.addEventListener?.("online", this.hurry = () => this.retryNow());
  }

  /** Tries again now instead of after the pause. */
  retryNow() {
    if (this.state !== "waiting") return;
    clearTimeout(this.timer);
    this.open();
  }

  /** Disconnects for good; unanswered sends fail. */
  close() {
    this.wanted = false;
    clearTimeout(this.timer);
    globalThis.removeEventListener?.("online", this.hurry);
    this.socket?.close(1000);
    this.lost(1000);
  }

  /**
   * Sends a text. Resolves when the receiver's node has it.
   * @param {string} receiverId @param {string} text @returns {Promise<void>}
   * @throws {TextoError} (as a rejection) with the server's code; EDISCONNECTED when there is no
   * connection, or it was lost before the answer: the message may or may not have arrived then.
   */
  send(receiverId, text) {
    if (this.state !== "connected") {
      return Promise.reject(new TextoError("EDISCONNECTED", "there is no connection now"));
    }
    const id = uuid();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.unanswered.delete(id);
        reject(new TextoError("ETIMEOUT", "the server did not answer"));
        this.drop(); // It answers every send: this connection leads nowhere.
      }, ANSWER_PATIENCE);
      this.unanswered.set(id, { resolve, reject, timer });
      this.write("send", id, { receiver_id: receiverId, text });
    });
  }

  write(kind, id, data) {
    this.socket.send(JSON.stringify({ client_id: this.clientId, id, kind, data }));
  }

  become(state, more = {}) {
    this.state = state;
    this.onstate({ state, clientId: this.clientId, ...more });
  }

  open() {
    const socket = new WebSocket(this.url);
    this.socket = socket;
    this.become("connecting");
    const patience = setTimeout(() => socket.close(), GREETING_PATIENCE);
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
      if (socket === this.socket) this.lost(code);
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
      if (this.state === "connected" && data.client_id === this.clientId) return; // The sign of life.
      this.clientId = data.client_id;
      // Only now is the connection known to be of use: a server that accepts and drops is not hammered.
      this.pause = FIRST_PAUSE;
      this.become("connected");
    } else if (kind === "receive") {
      this.write("ack", id, null);
      if (this.seen.has(id)) return;
      this.seen.add(id);
      if (this.seen.size > REMEMBERED) this.seen.delete(this.seen.values().next().value);
      this.onreceive({ id, senderId: data.sender_id, text: data.text });
    } else if (kind === "ack" || kind === "error") {
      const waiting = this.unanswered.get(id);
      if (!waiting) return;
      this.unanswered.delete(id);
      clearTimeout(waiting.timer);
      if (kind === "ack") waiting.resolve();
      else waiting.reject(new TextoError(data.code, data.description));
    }
  }

  lost(code) {
    this.socket = null;
    clearTimeout(this.watch);
    for (const { reject, timer } of this.unanswered.values()) {
      clearTimeout(timer);
      reject(new TextoError("EDISCONNECTED", "the connection was lost before an answer; the message may have arrived"));
    }
    this.unanswered.clear();
    if (!this.wanted) {
      this.become("closed");
      return;
    }
    // A node that drains or stops (1012, 1001) says so, and spreads it itself: go soon. One that died did not. Full
    // jitter, for thousands may be coming back at the same moment.
    const told = code === 1012 || code === 1001;
    const most = told ? this.pause : Math.max(this.pause, BROKEN_PAUSE);
    const retryIn = Math.round(most * Math.random());
    this.pause = Math.min(most * 2, LONGEST_PAUSE);
    this.timer = setTimeout(() => this.open(), retryIn);
    this.become("waiting", { retryIn });
  }
}
