// node-apn as its README uses it: one Provider, arrays of tokens, two of them on their way at a time.
'use strict';

const crypto = require('crypto');
const apn = require('@parse/node-apn');

const CHUNK = 250;
const LANES = 2;

async function main(job) {
  const where = new URL(job.url);
  const provider = new apn.Provider({
    token: { key: job.key_file, keyId: job.key_id, teamId: job.team_id },
    address: where.hostname,
    port: Number(where.port),
    ca: [job.ca_file],
    production: true,
    requestTimeout: 30000,
  });
  const tokens = Array.from({ length: job.tokens }, () => crypto.randomBytes(32).toString('hex'));
  const notification = new apn.Notification();
  notification.rawPayload = job.message;
  notification.topic = job.topic;
  notification.pushType = 'alert';
  notification.priority = 10;
  notification.expiry = 1900000000;

  let at = 0;
  const figures = { answered: 0, accepted: 0 };
  const send = async (count) => {
    const start = at;
    at = (at + count) % (tokens.length - CHUNK);
    const result = await provider.send(notification, tokens.slice(start, start + count));
    figures.answered += result.sent.length + result.failed.length;
    figures.accepted += result.sent.length;
  };
  await send(1);
  await send(CHUNK);
  figures.answered = figures.accepted = 0;
  const cpu = process.cpuUsage();
  const started = process.hrtime.bigint();
  const seconds = () => Number(process.hrtime.bigint() - started) / 1e9;
  const more = () => (job.count ? figures.answered < job.count : seconds() < job.seconds);
  const lane = async () => {
    while (more()) await send(CHUNK);
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  const used = process.cpuUsage(cpu);
  console.log(JSON.stringify({ ...figures, seconds: seconds(), cpu: (used.user + used.system) / 1e6, longest_gap: 0 }));
  process.exit(0);
}

main(JSON.parse(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});
