// The quickstart through the client that orval makes, for the server at BASE_URL.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import {
  downloadArtifact,
  getJob,
  getMe,
  getOverview,
  listEvents,
  logOut,
  recordEvents,
  register,
  submitJob,
  summariseEvents,
} from "./client";

async function main(): Promise<void> {
  const email = `${randomUUID()}@example.com`;
  const registered = await register({ email, password: "correct horse battery staple", display_name: "Ada" });
  assert(registered.status === 201);
  const { user, tokens } = registered.data;
  assert(tokens !== undefined);
  assert.deepEqual([user.email, user.display_name], [email, "Ada"]);

  const headers = { Authorization: `Bearer ${tokens.access_token}` };
  const overview = await getOverview({ headers });
  assert(overview.status === 200);
  assert.equal(overview.data.user.id, user.id);
  assert.deepEqual(overview.data.recent_events, []);

  const once = { headers: { ...headers, "Idempotency-Key": randomUUID() } };
  const event = { kind: "page.viewed", properties: { path: "/" } };
  const first = await recordEvents(event, once);
  const again = await recordEvents(event, once);
  assert(first.status === 201 && again.status === 201);
  assert.deepEqual(again.data.ids, first.data.ids);
  const batch = await recordEvents({ events: [{ kind: "search.made" }, { kind: "document.opened" }] }, { headers });
  assert(batch.status === 201);
  assert.equal(batch.data.accepted, 2);
  const page = await listEvents({ limit: 2 }, { headers });
  assert(page.status === 200);
  assert.deepEqual(new Set(page.data.items.map((item) => item.id)), new Set(batch.data.ids));
  assert.notEqual(page.data.next_cursor, null);
  const summary = await summariseEvents({ bucket: "day" }, { headers });
  assert(summary.status === 200);
  assert.equal(summary.data.items.reduce((sum, item) => sum + item.count, 0), 3);

  const submitted = await submitJob({ kind: "export.events", args: { format: "csv" } }, { headers });
  assert(submitted.status === 202);
  const job = await getJob(submitted.data.id, { headers: { ...headers, Prefer: "wait=30" } });
  assert(job.status === 200 && job.data.kind === "export.events");
  assert.equal(job.data.state, "succeeded");
  assert.equal(job.data.result?.rows, 3);
  const [artifact] = job.data.artifacts;
  assert(artifact !== undefined);
  const file = await downloadArtifact(job.data.id, artifact.name, { headers });
  assert(file.status === 200);
  assert.equal(file.data.size, artifact.size);

  const missing = await getJob(randomUUID(), { headers });
  assert(missing.status === 404);
  assert.equal(missing.data.code, "job_not_found");
  assert.equal((await logOut(undefined, { headers })).status, 204);
  const refused = await getMe({ headers });
  assert(refused.status === 401);
  assert.equal(refused.data.code, "token_revoked");
  console.log("The story has passed.");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
