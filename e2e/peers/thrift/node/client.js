// An Apache Thrift client that does what lines of JSON on its standard input
// say, and answers with lines of JSON, like the client in Go. All calls of a
// service share a connection: they are sent at once, however many there are, and
// their answers told by their sequence ids.
"use strict";

const readline = require("readline");
const util = require("util");
const thrift = require("thrift");

const Echo = require("./echo/Echo");
const Unserved = require("./echo/Unserved");
const { Refusal } = require("./echo/echo_types");

const flags = {};
for (let i = 2; i < process.argv.length; i += 2) flags[process.argv[i].slice(1)] = process.argv[i + 1];

// The binary protocol without a version.
function Lax(transport) {
  thrift.TBinaryProtocol.call(this, transport, false, false);
}
util.inherits(Lax, thrift.TBinaryProtocol);

const options = {
  transport: flags.transport === "framed" ? thrift.TFramedTransport : thrift.TBufferedTransport,
  protocol: { strict: thrift.TBinaryProtocol, lax: Lax, compact: thrift.TCompactProtocol }[flags.protocol],
};

const print = (v) => process.stdout.write(JSON.stringify(v) + "\n");

const clients = {};

// client gives the client of a service, "" for those that are not multiplexed.
function client(name, service) {
  const key = name + " " + (service === Echo);
  if (!clients[key]) {
    const [host, port] = flags.addr.split(":");
    const connection = thrift.createConnection(host, Number(port), options);
    connection.on("error", (e) => process.stderr.write(`connection of ${key}: ${e}\n`));
    clients[key] = name ? new thrift.Multiplexer().createClient(name, service, connection) : thrift.createClient(service, connection);
  }
  return clients[key];
}

function call(cmd) {
  return new Promise((resolve) => {
    const start = process.hrtime.bigint();
    const answer = { id: cmd.id, value: null };
    const timer = setTimeout(() => done(new Error("timeout of the client")), cmd.timeout_ms || Number(flags.timeout));
    function done(err, value) {
      clearTimeout(timer);
      answer.latency_us = Number((process.hrtime.bigint() - start) / 1000n);
      if (err instanceof Refusal) {
        answer.error = `${err.reason} (code ${err.code})`;
        answer.error_type = "Refusal";
      } else if (err) {
        answer.error = err.message || String(err);
        answer.error_type = err.name === "TApplicationException" ? `TApplicationException ${err.type}` : "transport";
      } else if (value !== undefined) {
        answer.value = value;
      }
      resolve(answer);
    }
    const c = client(cmd.interface || "", cmd.method === "noSuch" ? Unserved : Echo);
    if (cmd.method === "tell") {
      c.tell(...cmd.args);
      done();
    } else {
      c[cmd.method](...(cmd.args || []), done);
    }
  });
}

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const cmd = JSON.parse(line);
  const all = Array.from({ length: cmd.count || 1 }, () => call(cmd));
  if (!cmd.summary) {
    all.forEach((p) => p.then(print));
    return;
  }
  const sum = { id: cmd.id, calls: all.length, values: {}, errors: {}, latency_us: { max: 0 } };
  for (const a of await Promise.all(all)) {
    const [where, key] = a.error ? [sum.errors, a.error] : [sum.values, String(a.value)];
    where[key] = (where[key] || 0) + 1;
    sum.latency_us.max = Math.max(sum.latency_us.max, a.latency_us);
  }
  print(sum);
});
