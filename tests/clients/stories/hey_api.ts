// The quickstart through the client that hey-api makes, for the server at BASE_URL.
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
import { client } from "./client/client.gen";

async function main(): Promise<void> {
  client.setConfig({ baseUrl: process.env.BASE_URL });
  const email = `${randomUUID()}@example.com`;
  const registered = await register({ body: { email, password: "correct horse battery staple", display_name: "Ada" } });
  assert(registered.data !== undefined && "tokens" in registered.data);
  const { user, tokens } = registered.data;
  assert(tokens !== undefined);
  assert.deepEqual([user.email, user.display_name], [email, "Ada"]);

  client.setConfig({ auth: () => tokens.access_token });
  const overview = await getOverview();
  assert.equal(overview.data?.user.id, user.id);
  assert.deepEqual(overview.data.recent_events, []);

  const headers = { "Idempotency-Key": randomUUID() };
  const body = { kind: "page.viewed", properties: { path: "/" } };
  const first = await recordEvents({ body, headers });
  const again = await recordEvents({ body, headers });
  assert.deepEqual(again.data?.ids, first.data?.ids);
  const batch = await recordEvents({ body: { events: [{ kind: "search.made" }, { kind: "document.opened" }] } });
  assert.equal(batch.data?.accepted, 2);
  const page = await listEvents({ query: { limit: 2 } });
  assert.deepEqual(new Set(page.data?.items.map((event) => event.id)), new Set(batch.data.ids));
  assert.notEqual(page.data?.next_cursor, null);
  const summary = await summariseEvents({ query: { bucket: "day" } });
  assert.equal(summary.data?.items.reduce((sum, item) => sum + item.count, 0), 3);

  const submitted = await submitJob({ body: { kind: "export.events", args: { format: "csv" } } });
  assert(submitted.data !== undefined);
  const job = await getJob({ path: { job_id: submitted.data.id }, headers: { Prefer: "wait=30" } });
  assert(job.data?.kind === "export.events");
  assert.equal(job.data.state, "succeeded");
  assert.equal(job.data.result?.rows, 3);
  const [artifact] = job.data.artifacts;
  assert(artifact !== undefined);
  const file = await downloadArtifact({ path: { job_id: job.data.id, name: artifact.name }, parseAs: "blob" });
  assert(file.data instanceof Blob);
  assert.equal(file.data.size, artifact.size);

  const missing = await getJob({ path: { job_id: randomUUID() } });
  assert.equal(missing.error?.code, "job_not_found");
  assert.equal((await logOut()).response?.status, 204);
  assert.equal((await getMe()).error?.code, "token_revoked");
  console.log("The story has passed.");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
