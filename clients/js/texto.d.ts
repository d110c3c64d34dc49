/** A client of the Texto protocol, version 1, for browsers and Node: no dependencies, a session that outlives its connection. */

/** Why a message was not sent: what `send` rejects with. */
export class TextoError extends Error {
  constructor(code: ErrorCode, description: string);
  readonly name: "TextoError";
  /** What went wrong, for programs. */
  readonly code: ErrorCode;
  /** What went wrong, for people. */
  readonly description: string;
}

/**
 * The server's codes, and three of this side. All mean "not acknowledged"; after EBROKER, EBUSY and EDISCONNECTED the
 * message may have been shown all the same.
 *
 * - `ENOTCONN`: nobody is connected as the receiver.
 * - `EBROKER`: it could not be handed over in time; send it again.
 * - `EBUSY`: the receiver reads more slowly than it is written to; send it again later.
 * - `EAGAIN`: this client is over its rate limit, or more than 1,024 of its messages wait.
 * - `EMSGSIZE`: the text is too long.
 * - `EINVAL`: the receiver's id is no UUID, or the text no string.
 * - `EAUTH`: credentials are required, refused or expired.
 * - `EDISCONNECTED`: `connect` was not called, or the session ended before the answer.
 * - `ETIMEOUT`: there was no connection for half a minute.
 */
export type ErrorCode =
  | "ENOTCONN" | "EBROKER" | "EBUSY" | "EAGAIN" | "EMSGSIZE" | "EINVAL" | "EAUTH" | "ESYNTAX" | "EKIND" | "ECID"
  | "EDISCONNECTED" | "ETIMEOUT"
  | (string & {}); // What a newer server says.

/** A message from somebody. */
export interface Message {
  /** New for each message. */
  readonly id: string;
  /** Whom to answer. */
  readonly senderId: string;
  readonly text: string;
}

/** `waiting`: for the next attempt to connect. `closed`: before `connect`, after `close`, and when the server ended it. */
export type State = "connecting" | "connected" | "waiting" | "closed";

/** What `onstate` is told. */
export type StateChange =
  | { readonly state: "connecting"; readonly clientId: string | null }
  | {
      readonly state: "connected";
      /** The id under which others reach this client. */
      readonly clientId: string;
      /** The session goes on, and nothing was missed. */
      readonly resumed: boolean;
      /** There was a session before, and messages for it may be missing; if `clientId` is another one, tell others. */
      readonly missing: boolean;
    }
  | {
      readonly state: "waiting";
      readonly clientId: string | null;
      /** Milliseconds until the next attempt. */
      readonly retryIn: number;
    }
  | {
      readonly state: "closed";
      readonly clientId: null;
      /**
       * Set when the server ended it: the session goes on over a newer connection, or credentials are missing, refused or
       * expired. `connect` begins a new session.
       */
      readonly reason?: "elsewhere" | "credentials";
      /** What the server said of it, set with `reason`: which credentials it asks for, or why they were refused. */
      readonly description?: string;
    };

/** All are optional. */
export interface TextoOptions {
  /** Milliseconds of silence after which the server is asked for a sign of life. Default: 10,000. */
  quiet?: number;
  /** Milliseconds that the sign may take before the connection is given up. Default: 5,000. */
  signPatience?: number;
  /**
   * Under which name the tab keeps the session (in `sessionStorage`) for when the page is loaded anew; `null`: not at all.
   * Two clients of one page need two names. Default: "texto" in pages, `null` elsewhere.
   */
  keep?: string | null;
  /**
   * Gives a fresh token (a JWT) each time it is called: for each connection, and before the last one expires. If it
   * throws, the client tries again later.
   */
  credentials?: (() => string | Promise<string>) | null;
  /** The constructor of WebSockets. Default: `globalThis.WebSocket`. */
  WebSocket?: (new (url: string) => any) | undefined;
}

/**
 * @example
 * const texto = new Texto("wss://chat.example.org/v1/texto");
 * texto.onstate = ({ state, clientId }) => console.log(state, clientId);
 * texto.onreceive = ({ senderId, text }) => texto.send(senderId, `You said: ${text}`);
 * texto.connect();
 */
export class Texto {
  /**
   * @param url Where the gateway is, such as `wss://chat.example.org/v1/texto`; by default the host of the page. Of several
   * it goes on to the next one after each failure.
   * @throws TypeError when there is no page, and no `url`; when one is no URL; when there is no WebSocket.
   */
  constructor(url?: string | readonly string[], options?: TextoOptions);

  /** The id under which others reach this client; `null` before the first connection. */
  readonly clientId: string | null;
  readonly state: State;

  /** Called with each message, once and in order. */
  onreceive: (message: Message) => void;
  /** Called with each change of `state`. */
  onstate: (change: StateChange) => void;

  /** Connects, and stays connected until `close`: after a failure it waits (full jitter, up to 15 s) and tries again. */
  connect(): void;
  /** Tries again now instead of after the pause. */
  retryNow(): void;
  /** Ends the session. Unanswered sends fail with EDISCONNECTED. */
  close(): void;

  /**
   * Sends a text. Resolves when the server vouches that the receiver gets it: the receiver's node has it (two nodes, if the
   * receiver can resume). Without a connection it waits for one, and what was not answered is sent again, in the same
   * order; it is shown once.
   * @throws TextoError (as a rejection)
   */
  send(receiverId: string, text: string): Promise<void>;
}

/** A version 4 UUID, in pages without a secure context too. */
export function uuid(): string;
