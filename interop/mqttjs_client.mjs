// MQTT.js under remote control: commands on standard input, events on standard output, one JSON object a line.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

// Installed beside the cache, not beside this file.
const mqtt = createRequire(process.env.INTEROP_NODE_MODULES + "/")("mqtt");

const VERSIONS = { 3.1: [3, "MQIsdp"], "3.1.1": [4, "MQTT"], 5: [5, "MQTT"] };
const PROTOCOLS = { tcp: "mqtt", tls: "mqtts", ws: "ws", wss: "wss" };

const say = (event, what = {}) => process.stdout.write(JSON.stringify({ event, ...what }) + "\n");

function payload(text, size) {
  if (size === null) return Buffer.from(text);
  return Buffer.alloc(size, text + ":");
}

function connect(c) {
  const [protocolVersion, protocolId] = VERSIONS[c.version];
  const protocol = PROTOCOLS[c.transport];
  const client = mqtt.connect({
    servers: c.servers.map(([host, port]) => ({ host, port, protocol })),
    protocol, // also here, or MQTT.js drops the path
    clientId: c.id,
    protocolVersion,
    protocolId,
    clean: c.clean,
    reconnectPeriod: c.reconnect_s * 1000,
    keepalive: 20,
    ca: c.ca ? readFileSync(c.ca) : undefined,
    path: c.transport.startsWith("ws") ? "/mqtt" : undefined,
    will: c.will ? { topic: c.will.topic, payload: c.will.text, qos: c.will.qos } : undefined,
    properties: protocolVersion === 5 ? { sessionExpiryInterval: c.clean ? 0 : 3600 } : undefined,
  });
  client.on("connect", (connack) => say("connected", { present: connack.sessionPresent }));
  client.on("close", () => say("disconnected"));
  client.on("error", (error) => say("error", { text: String(error) }));
  client.on("message", (topic, bytes, p) =>
    say("message", {
      topic,
      qos: p.qos,
      retain: p.retain,
      dup: p.dup,
      size: bytes.length,
      text: bytes.length <= 256 ? bytes.toString() : null,
      sha256: createHash("sha256").update(bytes).digest("hex"),
    }),
  );
  return client;
}

let client;
const commands = {
  connect: (c) => (client = connect(c)),
  subscribe: (c) =>
    client.subscribe(c.filters, { qos: c.qos }, (error, granted, packet) =>
      say("subscribed", { codes: packet?.granted ?? granted?.map((g) => g.qos) ?? [0x80], error: error?.message }),
    ),
  publish: (c) =>
    client.publish(c.topic, payload(c.text, c.size), { qos: c.qos, retain: c.retain }, (error) =>
      error ? say("error", { text: String(error) }) : say("acknowledged"),
    ),
  disconnect: () => client.end(false, {}, () => say("ended")),
};

createInterface({ input: process.stdin }).on("line", (line) => {
  const c = JSON.parse(line);
  commands[c.do](c);
});
process.stdin.on("end", () => process.exit(0));
