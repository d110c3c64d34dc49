/** What somebody writes who uses the package; each line that must be refused says so. */
import { Texto, TextoError, uuid, type ErrorCode, type Message, type StateChange, type TextoOptions } from "texto-client";

const options: TextoOptions = { quiet: 5_000, keep: null, credentials: async () => "token", WebSocket: undefined };
const texto = new Texto(["wss://a.example.org/v1/texto", "wss://b.example.org/v1/texto"], options);
new Texto();
new Texto("wss://chat.example.org/v1/texto");

texto.onreceive = ({ id, senderId, text }: Message) => void [id.length, senderId.length, text.length];
texto.onstate = (change: StateChange) => {
  if (change.state === "connected") void [change.clientId.length, change.missing && !change.resumed];
  if (change.state === "waiting") void change.retryIn.toFixed();
  if (change.state === "closed") void (change.reason === "elsewhere");
  // @ts-expect-error: before the first connection there is none.
  if (change.state === "connecting") void change.clientId.length;
  // @ts-expect-error: no such state.
  if (change.state === "sleeping") void change;
};
const nothing: void = texto.connect();
texto.retryNow();
const sent: Promise<void> = texto.send(uuid(), "hello");
sent.catch((error: unknown) => {
  if (!(error instanceof TextoError)) throw error;
  const code: ErrorCode = error.code;
  if (code === "ENOTCONN") void error.description.length;
});
texto.close();
void nothing;

// @ts-expect-error: an option that there is not.
new Texto("wss://chat.example.org/v1/texto", { patience: 1 });
// @ts-expect-error: a text is a string.
texto.send(uuid(), { text: "hello" });
// @ts-expect-error: the server says who one is.
texto.clientId = uuid();
