// The quickstart through the client that openapi-generator makes in TypeScript, for the server at BASE_URL.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import {
  Configuration,
  CoreApi,
  ExportFormat,
  IdentityApi,
  JobsApi,
  JobState,
  ProblemCode,
  ProblemFromJSON,
  ResponseError,
  UsersApi,
} from "./client";

async function codeOf(call: Promise<unknown>): Promise<ProblemCode> {
  try {
    await call;
  } catch (error) {
    assert(error instanceof ResponseError);
    const problem: unknown = await error.response.json();
    assert(typeof problem === "object" && problem !== null && "request_id" in problem);
    return ProblemFromJSON(problem).code;
  }
  throw new Error("The call has succeeded.");
}

async function main(): Promise<void> {
  let accessToken = "";
  const configuration = new Configuration({ basePath: process.env.BASE_URL, accessToken: async () => accessToken });
  const identity = new IdentityApi(configuration);
  const users = new UsersApi(configuration);
  const jobs = new JobsApi(configuration);
  const email = `${randomUUID()}@example.com`;
  const { user, tokens } = await identity.register({
    registerRequest: { email, password: "correct horse battery staple", displayName: "Ada" },
  });
  assert(tokens !== undefined);
  assert.deepEqual([user.email, user.displayName], [email, "Ada"]);
  // For OAuth this generator sends the text as it is.
  accessToken = `Bearer ${tokens.accessToken}`;
  const overview = await new CoreApi(configuration).getOverview();
  assert.equal(overview.user.id, user.id);
  assert.deepEqual(overview.recentEvents, []);

  const idempotencyKey = randomUUID();
  const eventsRequest = { kind: "page.viewed", properties: { path: "/" } };
  const first = await users.recordEvents({ eventsRequest, idempotencyKey });
  assert.deepEqual(await users.recordEvents({ eventsRequest, idempotencyKey }), first);
  const batch = await users.recordEvents({
    eventsRequest: { events: [{ kind: "search.made" }, { kind: "document.opened" }] },
  });
  assert.equal(batch.accepted, 2);
  const page = await users.listEvents({ limit: 2 });
  assert.deepEqual(new Set(page.items.map((event) => event.id)), new Set(batch.ids));
  assert.notEqual(page.nextCursor, null);
  const summary = await users.summariseEvents();
  assert.equal(summary.items.reduce((sum, item) => sum + item.count, 0), 3);

  const submitted = await jobs.submitJob({ submitJob: { kind: "export.events", args: { format: ExportFormat.Csv } } });
  const job = await jobs.getJob({ jobId: submitted.id, prefer: "wait=30" });
  assert(job.kind === "export.events");
  assert.equal(job.state, JobState.Succeeded);
  assert.equal(job.result?.rows, 3);
  const [artifact] = job.artifacts;
  assert(artifact !== undefined);
  const file = await jobs.downloadArtifact({ jobId: job.id, name: artifact.name });
  assert.equal(file.size, artifact.size);

  assert.equal(await codeOf(jobs.getJob({ jobId: randomUUID() })), ProblemCode.JobNotFound);
  await identity.logOut();
  assert.equal(await codeOf(users.getMe()), ProblemCode.TokenRevoked);
  console.log("The story has passed.");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
