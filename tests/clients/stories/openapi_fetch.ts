// The quickstart through openapi-fetch with the types that openapi-typescript makes, for the server at BASE_URL.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { paths } from "./schema";

async function main(): Promise<void> {
  const baseUrl = process.env.BASE_URL;
  const visitor = createClient<paths>({ baseUrl });
  const email = `${randomUUID()}@example.com`;
  const registered = await visitor.POST("/v1/auth/register", {
    body: { email, password: "correct horse battery staple", display_name: "Ada" },
  });
  assert(registered.data !== undefined && "tokens" in registered.data);
  const { user, tokens } = registered.data;
  assert(tokens !== undefined);
  assert.deepEqual([user.email, user.display_name], [email, "Ada"]);

  const api = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${tokens.access_token}` } });
  const overview = await api.GET("/v1/overview");
  assert.equal(overview.data?.user.id, user.id);
  assert.deepEqual(overview.data.recent_events, []);

  const headers = { "Idempotency-Key": randomUUID() };
  const body = { kind: "page.viewed", properties: { path: "/" } };
  const first = await api.POST("/v1/events", { body, params: { header: headers } });
  const again = await api.POST("/v1/events", { body, params: { header: headers } });
  assert.deepEqual(again.data?.ids, first.data?.ids);
  const batch = await api.POST("/v1/events", { body: { events: [{ kind: "search.made" }, { kind: "document.opened" }] } });
  assert.equal(batch.data?.accepted, 2);
  const page = await api.GET("/v1/users/me/events", { params: { query: { limit: 2 } } });
  assert.deepEqual(new Set(page.data?.items.map((event) => event.id)), new Set(batch.data.ids));
  assert.notEqual(page.data?.next_cursor, null);
  const summary = await api.GET("/v1/users/me/events/summary", { params: { query: { bucket: "day" } } });
  assert.equal(summary.data?.items.reduce((sum, item) => sum + item.count, 0), 3);

  const submitted = await api.POST("/v1/jobs", { body: { kind: "export.events", args: { format: "csv" } } });
  assert(submitted.data !== undefined);
  const job = await api.GET("/v1/jobs/{job_id}", {
    params: { path: { job_id: submitted.data.id }, header: { Prefer: "wait=30" } },
  });
  assert(job.data?.kind === "export.events");
  assert.equal(job.data.state, "succeeded");
  assert.equal(job.data.result?.rows, 3);
  const [artifact] = job.data.artifacts;
  assert(artifact !== undefined);
  const file = await api.GET("/v1/jobs/{job_id}/artifacts/{name}", {
    params: { path: { job_id: job.data.id, name: artifact.name } },
    parseAs: "text",
  });
  assert.equal(Buffer.byteLength(file.data ?? ""), artifact.size);

  const missing = await api.GET("/v1/jobs/{job_id}", { params: { path: { job_id: randomUUID() } } });
  assert.equal(missing.error?.code, "job_not_found");
  assert.equal((await api.POST("/v1/auth/logout")).response.status, 204);
  assert.equal((await api.GET("/v1/users/me")).error?.code, "token_revoked");
  console.log("The story has passed.");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
