/** What is of this package alone: its size, its types, ids in any page. Run by tests/client-js. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, test } from "node:test";
import { gzipSync } from "node:zlib";
import * as client from "texto-client";
import { Gateway, stopAll } from "./gateways.mjs";

const { Texto, uuid } = client;
const INSTALLED = import.meta.resolve("texto-client");
const MOST_BYTES = 5_000;
after(stopAll);

test("the package is small, needs nothing, and has what its types say", () => {
  const source = readFileSync(new URL(INSTALLED), "utf8");
  const size = gzipSync(source, { level: 9 }).length;
  assert.ok(size <= MOST_BYTES, `texto.js has ${size} bytes gzipped; ${MOST_BYTES} are the most`);
  const about = JSON.parse(readFileSync(new URL("package.json", INSTALLED), "utf8"));
  assert.deepEqual(Object.keys(about).filter((name) => name.endsWith("ependencies")), [], "it needs nothing");
  assert.equal(about.engines.node, ">=22");
  const types = readFileSync(new URL("texto.d.ts", INSTALLED), "utf8");
  const names = [...types.matchAll(/^export (?:class|function|const) (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual(names.sort(), Object.keys(client).sort());
  const members = types.slice(types.indexOf("export class Texto {")).matchAll(/^ {2}(?:readonly )?(\w+)(?=[:(])/gm);
  const texto = new Texto("ws://localhost/v1/texto");
  const missing = [...members].map(([, name]) => name).filter((name) => !(name in texto));
  assert.deepEqual(missing, []);
});

test("a gateway serves this very file", async () => {
  const gateway = await Gateway.start();
  const answer = await gateway.get("/texto.js");
  assert.match(answer.headers.get("Content-Type"), /^text\/javascript/);
  assert.equal(await answer.text(), readFileSync(new URL(INSTALLED), "utf8"));
});

test("ids are of version 4, in pages without a secure context too", () => {
  const pattern = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
  const own = Object.getOwnPropertyDescriptor(crypto, "randomUUID");
  for (const value of [crypto.randomUUID.bind(crypto), undefined]) {
    Object.defineProperty(crypto, "randomUUID", { value, configurable: true });
    const ids = Array.from({ length: 100 }, uuid);
    assert.deepEqual(ids.filter((id) => !pattern.test(id)), []);
    assert.equal(new Set(ids).size, 100);
  }
  if (own) Object.defineProperty(crypto, "randomUUID", own);
  else delete crypto.randomUUID;
});
