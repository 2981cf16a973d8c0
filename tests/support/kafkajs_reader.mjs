// Reads topics to their ends with kafkajs, as a service in Node does, and prints each record as a JSON
// line, with what the SDK of CloudEvents makes of it where it takes it for one.
//
//     node kafkajs_reader.mjs PACKAGES BROKERS RECORDS TOPIC...
//
// PACKAGES: a folder that kafkajs, kafkajs-snappy and cloudevents are installed in; it ends after so
// many RECORDS.
import { createRequire } from "node:module";

const [packages, brokers, records, ...topics] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = require("kafkajs");
CompressionCodecs[CompressionTypes.Snappy] = require("kafkajs-snappy");
const { Kafka: binding } = require("cloudevents");

const kafka = new Kafka({ clientId: "reader", brokers: brokers.split(","), logLevel: logLevel.ERROR });
const consumer = kafka.consumer({ groupId: `kafkajs-${process.pid}`, readUncommitted: false });
await consumer.connect();
await consumer.subscribe({ topics, fromBeginning: true });

let left = Number(records);
await new Promise((done, failed) => {
  consumer.on(consumer.events.CRASH, ({ payload }) => failed(payload.error));
  consumer.run({
    eachMessage: async ({ topic, message }) => {
      const texts = Object.entries(message.headers).map(([name, value]) => [name, value.toString("latin1")]);
      const headers = Object.fromEntries(texts);
      const value = message.value.toString();
      const event = { headers, key: message.key?.toString(), value, timestamp: message.timestamp };
      const found = binding.isEvent(event) ? binding.toEvent(event).toJSON() : null;
      console.log(JSON.stringify({ topic, key: event.key, value, headers, cloudevent: found }));
      left -= 1;
      if (left === 0) done();
    },
  });
});
await consumer.disconnect();
