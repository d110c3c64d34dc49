// Holds objects of the Prometheus operator (a JSON list on standard input) against its schema, by the validators that
// @kubernetes-models made of it. Those let unknown fields pass, so it is seen which fields they look at.
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
import { readFileSync } from "node:fs";

const kinds = { PrometheusRule, ServiceMonitor };
let wrong = 0;
const complain = (text) => { console.error(`tests/manifest: ${text}`); wrong += 1; };

// The validators begin with an object's own toJSON, and read each field that the schema has.
function watched(value, path, unread) {
  if (value === null || typeof value !== "object") return value;
  const copy = Array.isArray(value) ? [] : {};
  for (const [name, inner] of Object.entries(value)) {
    const here = `${path}.${name}`;
    unread.add(here);
    const child = watched(inner, here, unread);
    Object.defineProperty(copy, name, { enumerable: true, get() { unread.delete(here); return child; } });
  }
  return copy;
}

const objects = JSON.parse(readFileSync(0, "utf8"));
if (objects.length < 2) complain(`${objects.length} objects are too few to have looked at anything`);
for (const object of objects) {
  const place = `${object.kind}/${object.metadata.name}`;
  const kind = kinds[object.kind];
  if (!kind) { complain(`${place}: no schema for it`); continue; }
  try { new kind(object).validate(); } catch (error) { complain(`${place}: ${error.message}`); continue; }
  const unread = new Set();
  const { validate } = await import(`./node_modules/@kubernetes-models/prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1${object.kind}.js`);
  validate(watched(object, place, unread));
  for (const path of unread) complain(`${path}: no such field in the schema`);
}
if (wrong) process.exit(1);
console.log(`tests/manifest: ${objects.length} objects fit the schema of the Prometheus operator`);
