/**
 * The package, as it was installed, against real gateways that die meanwhile. Run by tests/client-js. The cases are those of
 * clients/CONFORMANCE.md, under the same names; what is of the package alone is in package.mjs.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, afterEach, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Texto, TextoError, uuid } from "texto-client";
import { Gateway, folder, freePort, made, redis, start, stopAll, texto as command, until } from "./gateways.mjs";

const NOBODY = "00000000-0000-4000-8000-000000000000";

const people = [];
const random = Math.random;
afterEach(() => {
  Math.random = random;
  const all = people.splice(0);
  for (const { texto } of all) texto.close();
  for (const { changes } of all) {
    const states = changes.map(({ state }) => state);
    const twice = states.filter((state, index) => state === states[index + 1]);
    assert.deepEqual(twice, [], `each change is told once: ${states}`);
  }
});
after(stopAll);

/** Somebody who remembers all that they hear. */
function person(urls, options = {}) {
  const texto = new Texto(urls, options);
  const heard = [];
  const changes = [];
  texto.onreceive = (message) => heard.push(message);
  texto.onstate = (change) => changes.push(change);
  texto.connect();
  const texts = () => heard.map(({ text }) => text);
  const pauses = () => changes.filter(({ state }) => state === "waiting").map(({ retryIn }) => retryIn);
  people.push({ texto, heard, changes, texts, pauses });
  return people.at(-1);
}

async function connected(...all) {
  for (const { texto, changes } of all) {
    await until("they are connected", () => texto.state === "connected", () => JSON.stringify(changes));
  }
}

const code = (promise) => promise.then(() => "ack", (error) => (error instanceof TextoError ? error.code : error));

test("what cannot work is told at once", async () => {
  assert.throws(() => new Texto(), /wss:\/\/HOST\/v1\/texto/);
  assert.throws(() => new Texto("nowhere"), TypeError);
  const texto = new Texto("wss://localhost/v1/texto");
  assert.equal(await code(texto.send(NOBODY, "hello")), "EDISCONNECTED");
});

test("two people talk, and each error has its code", async () => {
  const gateway = await Gateway.start();
  const [anna, berta] = [person(gateway.url), person(gateway.url.replace("ws:", "http:"))];
  await connected(anna, berta);
  assert.notEqual(anna.texto.clientId, berta.texto.clientId);
  const texts = Array.from({ length: 300 }, (_, number) => `${number} <&> "ü" 🙂`);
  await Promise.all(texts.map((text) => anna.texto.send(berta.texto.clientId.toUpperCase(), text)));
  await until("all has come", () => berta.heard.length === 300);
  assert.deepEqual(berta.texts(), texts);
  assert.ok(berta.heard.every(({ senderId }) => senderId === anna.texto.clientId));
  await anna.texto.send(anna.texto.clientId, "to myself");
  await until("it has come", () => anna.texts().join() === "to myself");

  assert.equal(await code(anna.texto.send(NOBODY, "anybody?")), "ENOTCONN");
  assert.equal(await code(anna.texto.send("nonsense", "x")), "EINVAL");
  assert.equal(await code(anna.texto.send(berta.texto.clientId, "x".repeat(20_000))), "EMSGSIZE");
  const error = await anna.texto.send(NOBODY, "x").catch((error) => error);
  assert.ok(error.message === `ENOTCONN: ${error.description}` && error.description.length > 10, error.message);
  const outcomes = Array.from({ length: 1_100 }, () => code(anna.texto.send(berta.texto.clientId, "much")));
  const refused = (await Promise.all(outcomes)).filter((outcome) => outcome === "EAGAIN").length;
  assert.equal(refused, 1_100 - 1_024);
});

test("what comes twice is shown once, with numbers and without", async () => {
  const gateway = await Gateway.start();
  const withNumbers = (text) => text;
  const without = (text) => text.replace(/"seq":\d+,|,"seq":\d+/, "");
  for (const change of [withNumbers, without]) {
    class Twice extends WebSocket {
      set onmessage(listen) {
        super.onmessage = ({ data }) => [data, data].forEach((data) => listen({ data: change(data) }));
      }
    }
    const [anna, berta] = [person(gateway.url, { WebSocket: Twice }), person(gateway.url)];
    await connected(anna, berta);
    const texts = Array.from({ length: 100 }, (_, number) => String(number));
    await Promise.all(texts.map((text) => berta.texto.send(anna.texto.clientId, text)));
    await until("all has come", () => anna.heard.length >= 100);
    await anna.texto.send(NOBODY, "x").catch(() => {}); // What came before its answer has come by then.
    assert.deepEqual(anna.texts(), texts);
    assert.equal(anna.texto.seq > 0, change === withNumbers);
  }
});

test("a frame over the limit (1009) fails, and nothing else does", async () => {
  const gateway = await Gateway.start("--max-frame-bytes", "20000");
  const [anna, berta] = [person(gateway.url), person(gateway.url)];
  await connected(anna, berta);
  const texts = ["before", "x".repeat(30_000), "after"];
  const outcomes = await Promise.all(texts.map((text) => code(anna.texto.send(berta.texto.clientId, text))));
  assert.deepEqual(outcomes, ["ack", "EMSGSIZE", "ack"]);
  await until("the rest has come", () => berta.heard.length === 2);
  assert.deepEqual(berta.texts(), ["before", "after"]);
});

test("nobody there: pauses grow to 15 s with full jitter, and what is sent waits", async () => {
  const address = `127.0.0.1:${await freePort()}`;
  Math.random = () => 0.001;
  const anna = person(`ws://${address}/v1/texto`);
  const sent = code(anna.texto.send(NOBODY, "it waits"));
  await until("it has tried seven times", () => anna.pauses().length >= 7, () => JSON.stringify(anna.changes));
  assert.deepEqual(anna.pauses().slice(0, 7), [1, 2, 4, 8, 15, 15, 15]);
  Math.random = () => 0.02;
  const gateway = new Gateway();
  Object.assign(gateway, { address, args: [] });
  await gateway.restart();
  await connected(anna);
  assert.equal(await sent, "ENOTCONN");
  // Once it was connected they begin anew.
  const before = anna.pauses().length;
  await gateway.end("SIGKILL");
  await until("it tries again", () => anna.pauses().length > before);
  assert.equal(anna.pauses()[before], 20);
});

test("a server that is full says when to come back", async () => {
  const gateway = await Gateway.start("--max-connections", "1");
  const first = person(gateway.url);
  await connected(first);
  Math.random = () => 0.01;
  const second = person(gateway.url);
  await until("it waits for a second more", () => second.pauses().some((pause) => pause >= 1_000));
  assert.ok(second.pauses().every((pause) => pause < 1_150), JSON.stringify(second.pauses()));
  first.texto.close();
  await connected(second);
});

test("whoever is asked to go (1012) comes back within a quarter of a second", async () => {
  const gateway = await Gateway.start("--drain-delay", "100ms", "--drain-window", "200ms");
  const anna = person(gateway.url);
  await connected(anna);
  Math.random = () => 0.999;
  gateway.end("SIGTERM");
  await until("it is asked to go", () => anna.pauses().length > 0);
  assert.equal(anna.pauses()[0], 250);
});

test("whoever is told to come later (1013) does, and keeps the id", async () => {
  const gateway = await Gateway.start("--resumes-per-address", "10");
  const anna = person(gateway.url);
  await connected(anna);
  const id = anna.texto.clientId;
  Math.random = () => 0.02;
  const told = () => anna.pauses().find((pause) => pause !== 20);
  while (told() === undefined) {
    anna.texto.drop(); // As if the network had broken.
    await until("it is connected, or told", () => anna.texto.state === "connected" || told());
  }
  assert.equal(told(), 100);
  await connected(anna);
  assert.equal(anna.texto.clientId, id);
});

/** A gateway that demands credentials, who makes some, and how many handshakes it has accepted. */
async function guarded() {
  const key = join(folder, "secret");
  writeFileSync(key, "0123456789abcdef".repeat(4), { mode: 0o600 });
  const gateway = await Gateway.start("--auth-key-file", key, "--auth-leeway", "0s");
  const accepted = () => gateway.metric('texto_handshakes_total{result="accepted"}');
  const token = (subject, lifetime) => command("token", "--key-file", key, "--subject", subject, "--expires-in", lifetime);
  return { gateway, accepted, token };
}

test("whoever is replaced (4001) does not come back", async () => {
  const { gateway, accepted, token } = await guarded();
  const id = uuid();
  const credentials = async () => token(id, "1h");
  const older = person(gateway.url, { credentials });
  await connected(older);
  const newer = person(gateway.url, { credentials });
  await connected(newer);
  await until("the older one is told", () => older.texto.state === "closed");
  assert.equal(older.changes.at(-1).reason, "elsewhere");
  assert.match(older.changes.at(-1).description, /newer connection/);
  assert.equal(await code(older.texto.send(id, "x")), "EDISCONNECTED");
  assert.equal(newer.texto.clientId, id);
  assert.equal(await accepted(), 2);
});

test("whoever is not let in (4003) does not come back", async () => {
  const { gateway, accepted } = await guarded();
  const stranger = person(gateway.url);
  await until("it is told", () => stranger.texto.state === "closed");
  assert.equal(stranger.changes.at(-1).reason, "credentials");
  assert.match(stranger.changes.at(-1).description, /credentials are required/);
  assert.equal(await accepted(), 1);
  const impostor = person(gateway.url, { credentials: () => "nonsense" });
  await until("it is told why", () => impostor.texto.state === "closed");
  assert.match(impostor.changes.at(-1).description, /no JWT/);
});

test("credentials are renewed in time", async () => {
  const { gateway, token } = await guarded();
  const tokens = [token("berta", "1h"), token("berta", "6s")];
  const end = Date.now() + 6_500;
  const berta = person(gateway.url, { credentials: () => tokens.pop() });
  await until("the first is over", () => Date.now() > end);
  await berta.texto.send(berta.texto.clientId, "still here");
  assert.deepEqual(berta.changes.map(({ state }) => state), ["connecting", "connected"]);
});

test("nothing is lost and nothing comes twice while gateways are killed, drained and stopped", async () => {
  const keys = made("session-keys", "session-key");
  const flags = ["--redis", await redis(), "--session-key-file", keys, "--drain-delay", "100ms", "--drain-window", "200ms"];
  // Nobody is to hear EBUSY because the other one was away: what waits for somebody from one sender is a quarter of this.
  flags.push("--outbox-messages", "8192");
  const gateways = await Promise.all([Gateway.start(...flags), Gateway.start(...flags)]);
  const together = async () => {
    const alone = async (gateway) =>
      (await gateway.metric("texto_other_nodes")) !== 1 || (await gateway.metric("texto_sessions_without_standby")) !== 0;
    await until("there are two copies", async () => !(await alone(gateways[0])) && !(await alone(gateways[1])));
  };
  await together();
  const urls = gateways.map(({ url }) => url);
  const options = { quiet: 1_000, signPatience: 1_000 };
  const [anna, berta] = [person(urls, options), person(urls.toReversed(), options)];
  await connected(anna, berta);
  const ids = [anna.texto.clientId, berta.texto.clientId];

  const outcomes = [];
  let number = 0;
  let answered = 0;
  const talk = setInterval(() => {
    // Whoever writes more than fits while the other is away is told EBUSY, and rightly.
    if (outcomes.length - answered > 100) return;
    number += 1;
    outcomes.push(code(anna.texto.send(ids[1], `anna ${number}`)), code(berta.texto.send(ids[0], `berta ${number}`)));
    for (const outcome of outcomes.slice(-2)) outcome.then(() => (answered += 1));
  }, 20);
  const ends = [
    [0, "SIGKILL"], // Anna's.
    [1, "SIGTERM"], // Now of both.
    [0, "SIGSTOP"],
    [1, "SIGKILL"],
  ];
  try {
    for (const [at, signal] of ends) {
      await together();
      const before = [anna, berta].map(({ changes }) => changes.length);
      const moved = ({ texto }) => texto.state === "connected" && texto.urls[0].startsWith(urls[1 - at]);
      const gone = gateways[at].end(signal);
      await until(
        `all are at the other one after ${signal}`,
        () => moved(anna) && moved(berta),
        () => JSON.stringify([anna, berta].map(({ changes }, index) => changes.slice(before[index]))),
      );
      if (signal === "SIGSTOP") gateways[at].child.kill("SIGKILL");
      await gone;
      await gateways[at].restart();
    }
  } finally {
    clearInterval(talk);
  }
  const wrong = (await Promise.all(outcomes)).filter((outcome) => outcome !== "ack");
  assert.deepEqual(wrong, []);
  for (const [one, name, id] of [[anna, "berta", ids[0]], [berta, "anna", ids[1]]]) {
    await until("all has come", () => one.heard.length >= number);
    assert.deepEqual(one.texts(), Array.from({ length: number }, (_, index) => `${name} ${index + 1}`));
    assert.equal(new Set(one.heard.map((message) => message.id)).size, number);
    const again = one.changes.filter(({ state }) => state === "connected").slice(1);
    assert.ok(again.length >= 2, JSON.stringify(one.changes));
    assert.ok(again.every((change) => change.resumed && !change.missing && change.clientId === id), JSON.stringify(again));
  }
  console.log(`${2 * number} messages, each shown once and in order, over ${ends.length} ends of gateways`);
});

test("the example chats, and a program ends when its client is closed", async () => {
  const gateway = await Gateway.start();
  const script = fileURLToPath(new URL("examples/chat.mjs", import.meta.resolve("texto-client")));
  const chat = (...to) => start(process.execPath, [script, gateway.url, ...to]);
  const said = (child, pattern) =>
    until(String(pattern), () => child.lines.map((line) => line.match(pattern)).find(Boolean), () => child.lines.join("\n"));
  const anna = chat();
  const [, id] = await said(anna, /you are (\S{36})/);
  const berta = chat(id);
  berta.stdin.write("hello, you\n");
  await said(anna, /^[0-9a-f]{8}: hello, you$/);
  anna.stdin.write("hello yourself\n");
  await said(berta, /^[0-9a-f]{8}: hello yourself$/);
  for (const child of [anna, berta]) {
    child.stdin.end("and goodbye\n");
    const [exit] = await child.ended;
    assert.equal(exit, 0, child.lines.join("\n"));
  }
});
