// Chats in the terminal. In two of them:
//
//     node chat.mjs ws://localhost:8398/v1/texto
//     node chat.mjs ws://localhost:8398/v1/texto ID-OF-THE-OTHER
//
// Several addresses stand with commas between them. TEXTO_TOKEN holds credentials, where the gateway demands some.
import { createInterface } from "node:readline";
import { Texto } from "texto-client";

const [addresses = "ws://localhost:8398/v1/texto", to] = process.argv.slice(2);
const token = process.env.TEXTO_TOKEN;
const texto = new Texto(addresses.split(","), { credentials: token ? () => token : null });
let receiver = to;
let id = null;

texto.onstate = ({ state, clientId, missing, reason, retryIn }) => {
  if (state === "waiting") console.log(`* no connection; the next attempt is in ${retryIn} ms`);
  if (state === "closed" && reason) finish(`the server ended it: ${reason}`);
  if (state !== "connected") return;
  console.log(id === clientId ? "* connected again" : `* you are ${clientId}`);
  if (missing) console.log("* some messages may be missing");
  id = clientId;
};

texto.onreceive = ({ senderId, text }) => {
  console.log(`${senderId.slice(0, 8)}: ${text}`);
  if (!receiver) console.log(`* what you write goes to ${senderId}`);
  receiver ??= senderId;
};

function finish(why) {
  console.error(`* ${why}`);
  process.exitCode = 1;
  lines.close();
}

const lines = createInterface({ input: process.stdin });
texto.connect();
const sends = [];
for await (const line of lines) {
  if (line.trim() === "") continue;
  if (!receiver) console.log("* nobody has written to you yet: start with an id to write first");
  else sends.push(texto.send(receiver, line).catch(({ message }) => console.log(`* not sent: "${line}" (${message})`)));
}
await Promise.all(sends);
texto.close();
