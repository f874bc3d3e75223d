// A service that consumes the bridge's events: a durable pull consumer that
// takes the types it wants, handles each event once by its CloudEvents id, tries
// again with growing pauses what fails, puts aside what fails too often, and
// stops without leaving anything half done.
//
// NATS_URL, STREAM (WEBHOOKS), SUBJECTS (comma-separated; webhooks.trusthub.>),
// DURABLE (onboarding), FAIL (an entity whose events fail, to see what happens).

import { AckPolicy, DiscardPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { Objm } from "@nats-io/obj";
import { connect, headers } from "@nats-io/transport-node";
import { HTTP } from "cloudevents";

const env = (name, otherwise) => process.env[name] || otherwise;
const stream = env("STREAM", "WEBHOOKS");
const durable = env("DURABLE", "onboarding");
const failing = env("FAIL", "");

const backoff = [100, 500, 2_000, 10_000]; // ms between attempts
const attempts = backoff.length + 1;

const nc = await connect({
  servers: env("NATS_URL", "nats://127.0.0.1:4222").split(","),
  name: durable,
  maxReconnectAttempts: -1,
});
const js = jetstream(nc);
const jsm = await jetstreamManager(nc);

await jsm.consumers.add(stream, {
  durable_name: durable,
  filter_subjects: env("SUBJECTS", "webhooks.trusthub.>").split(","),
  ack_policy: AckPolicy.Explicit,
  ack_wait: 30e9, // ns
});
// What failed too often waits here for somebody to look at it.
await jsm.streams.add({ name: `${durable}-dead`, subjects: [`dead.${durable}.>`], discard: DiscardPolicy.New });
// Which events were handled. A service with a database keeps this there, written
// in the transaction that has the effect.
const handled = await new Kvm(js).create(`${durable}-handled`, { ttl: 8 * 24 * 3600 * 1000 });

// event reads a CloudEvent in binary mode: attributes are ce-* headers,
// percent-encoded where they need it.
async function event(msg) {
  const attributes = { "content-type": msg.headers?.get("content-type") };
  for (const [name, values] of msg.headers ?? []) {
    if (name.startsWith("ce-")) attributes[name] = decodeURIComponent(values[0]);
  }
  let body = msg.string();
  if (attributes["ce-dataref"]) body = await object(attributes["ce-dataref"]); // too large for a message
  return HTTP.toEvent({ headers: attributes, body });
}

// object reads the body that a dataref names: nats-object:<bucket>/<name>.
async function object(dataref) {
  const [, bucket, name] = /^nats-object:([^/]+)\/(.+)$/.exec(dataref) ?? [];
  if (!bucket) throw new Error(`not an object: ${dataref}`);
  const store = await new Objm(js).open(bucket);
  const blob = await store.getBlob(name);
  if (!blob) throw new Error(`no object ${name} in ${bucket}`);
  return new TextDecoder().decode(blob);
}

// handle has the effect of an event.
async function handle(ce) {
  if (failing && ce.subject === failing) throw new Error(`cannot handle ${ce.subject}`);
  console.log(`handled ${ce.type} subject=${ce.subject} outcome=${ce.outcome} id=${ce.id.slice(0, 12)}`);
}

async function one(msg) {
  try {
    const ce = await event(msg);
    if (await handled.get(ce.id)) {
      console.log(`known ${ce.type} id=${ce.id.slice(0, 12)}`);
    } else {
      await handle(ce);
      await handled.put(ce.id, new Date().toISOString());
    }
    await msg.ackAck();
  } catch (err) {
    const n = msg.info.deliveryCount;
    if (n < attempts) {
      console.log(`failed, attempt ${n} of ${attempts}: ${err.message}`);
      msg.nak(backoff[n - 1]);
      return;
    }
    // Only when it is put aside it may be given up.
    const kept = headers();
    for (const [name, values] of msg.headers ?? []) if (!name.startsWith("Nats-")) kept.append(name, values[0]); // those are the server's
    await js.publish(`dead.${durable}.${msg.subject}`, msg.data, { headers: kept, msgID: `${durable}-${msg.seq}` });
    msg.term(err.message);
    console.log(`given up after ${n} attempts: ${err.message}`);
  }
}

const consumer = await js.consumers.get(stream, durable);
// Whoever leads the consumer may not be known for a moment: after two heartbeats
// (milliseconds) that do not come it is asked again.
const messages = await consumer.consume({ max_messages: 100, idle_heartbeat: 1000 });
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => messages.stop());
console.log(`consuming ${stream} as ${durable}`);
for await (const msg of messages) {
  // The one at hand is finished before the service stops. What is neither
  // acknowledged nor refused comes again.
  await one(msg).catch((err) => console.error(err.message));
}
await nc.drain();
console.log("stopped");
