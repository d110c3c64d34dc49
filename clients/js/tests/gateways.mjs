/** Real gateways and a real Redis, on free ports, that a test can let die. They end with the tests. */
import { spawn, execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const BINARY = process.env.TEXTO_BINARY;
const LIMIT = 20_000;
/** Nothing of what is set for gateways where the tests run. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TEXTO_")));

export const folder = mkdtempSync(join(tmpdir(), "texto-js-"));
const running = new Set();
export function stopAll() {
  for (const child of running) child.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
}
// Also when the tests end otherwise.
process.on("exit", stopAll);

/** Starts a program; what it says line by line is kept in `lines`. */
export function start(program, args, options = {}) {
  const child = spawn(program, args, { cwd: folder, env: ENV, ...options });
  running.add(child);
  child.lines = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on("line", (line) => child.lines.push(line));
  }
  child.on("error", (error) => child.lines.push(String(error)));
  child.ended = once(child, "exit").finally(() => running.delete(child));
  child.ended.catch(() => {});
  return child;
}

/** What `found` gives, as soon as it gives something; asked again and again. */
export async function until(what, found, describe = () => "") {
  const end = Date.now() + LIMIT;
  for (;;) {
    const value = await found();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${LIMIT} ms: ${what}; ${describe()}`);
    await new Promise((done) => setTimeout(done, 10));
  }
}

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

export async function redis() {
  const port = await freePort();
  const words = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"].map(String);
  const child = start("redis-server", words);
  await until("Redis is there", () => child.lines.some((line) => line.includes("Ready to accept")), () => child.lines.join("\n"));
  return `127.0.0.1:${port}`;
}

/** A gateway, which `restart` starts again at the same address. */
export class Gateway {
  static async start(...args) {
    const gateway = new Gateway();
    gateway.args = args;
    await gateway.restart();
    return gateway;
  }

  async restart() {
    const child = start(BINARY, ["--listen", this.address ?? "127.0.0.1:0", "--log-format", "json", ...this.args]);
    const listening = () => child.lines.find((line) => line.includes('"message":"listening"'));
    const line = await until("the gateway listens", listening, () => child.lines.join("\n"));
    this.address = JSON.parse(line).fields.address;
    this.url = `ws://${this.address}/v1/texto`;
    this.child = child;
    await until("the gateway is ready", async () => (await this.get("/readyz")).ok, () => child.lines.join("\n"));
  }

  async end(signal) {
    this.child.kill(signal);
    await this.child.ended;
  }

  get(path) {
    return fetch(`http://${this.address}${path}`).catch((error) => ({ ok: false, text: () => String(error) }));
  }

  async metric(name) {
    const text = await (await this.get("/metrics")).text();
    return Number(text.split("\n").find((line) => line.startsWith(`${name} `))?.split(" ")[1]);
  }
}

/** A file of what `texto` prints when it is asked by `args`. */
export function made(name, ...args) {
  const file = join(folder, name);
  writeFileSync(file, texto(...args), { mode: 0o600 });
  return file;
}

export function texto(...args) {
  return execFileSync(BINARY, args, { env: ENV, encoding: "utf8" }).trim();
}
