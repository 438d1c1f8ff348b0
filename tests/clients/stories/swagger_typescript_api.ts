// The quickstart through the client that swagger-typescript-api makes, for the server at BASE_URL.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Api, Bucket, ExportFormat, type HttpResponse, type Problem } from "./client/Api";

async function codeOf(call: Promise<unknown>): Promise<string> {
  try {
    await call;
  } catch (error) {
    return (error as HttpResponse<unknown, Problem>).error.code;
  }
  throw new Error("The call has succeeded.");
}

async function main(): Promise<void> {
  const api = new Api<string>({
    baseUrl: process.env.BASE_URL,
    securityWorker: (token) => ({ headers: { Authorization: `Bearer ${token}` } }),
  });
  const email = `${randomUUID()}@example.com`;
  const registered = await api.v1.register({ email, password: "correct horse battery staple", display_name: "Ada" });
  assert(registered.data !== null && "tokens" in registered.data);
  const { user, tokens } = registered.data;
  assert(tokens !== undefined);
  assert.deepEqual([user.email, user.display_name], [email, "Ada"]);

  api.setSecurityData(tokens.access_token);
  const overview = await api.v1.getOverview();
  assert.equal(overview.data.user.id, user.id);
  assert.deepEqual(overview.data.recent_events, []);

  const headers = { "Idempotency-Key": randomUUID() };
  const event = { kind: "page.viewed", properties: { path: "/" } };
  const first = await api.v1.recordEvents(event, { headers });
  const again = await api.v1.recordEvents(event, { headers });
  assert.deepEqual(again.data.ids, first.data.ids);
  const batch = await api.v1.recordEvents({ events: [{ kind: "search.made" }, { kind: "document.opened" }] });
  assert.equal(batch.data.accepted, 2);
  const page = await api.v1.listEvents({ limit: 2 });
  assert.deepEqual(new Set(page.data.items.map((item) => item.id)), new Set(batch.data.ids));
  assert.notEqual(page.data.next_cursor, null);
  const summary = await api.v1.summariseEvents({ bucket: Bucket.Day });
  assert.equal(summary.data.items.reduce((sum, item) => sum + item.count, 0), 3);

  const submitted = await api.v1.submitJob({ kind: "export.events", args: { format: ExportFormat.Csv } });
  const job = await api.v1.getJob(submitted.data.id, { headers: { Prefer: "wait=30" } });
  assert(job.data.kind === "export.events");
  assert.equal(job.data.state, "succeeded");
  assert.equal(job.data.result?.rows, 3);
  const [artifact] = job.data.artifacts;
  assert(artifact !== undefined);
  const file = await api.v1.downloadArtifact(job.data.id, artifact.name, { format: "blob" });
  assert.equal(file.data.size, artifact.size);

  assert.equal(await codeOf(api.v1.getJob(randomUUID())), "job_not_found");
  assert.equal((await api.v1.logOut({})).status, 204);
  assert.equal(await codeOf(api.v1.getMe()), "token_revoked");
  console.log("The story has passed.");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
