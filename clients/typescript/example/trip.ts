/** The whole trip: sign in, create two nodes from source and a workflow of them, start it, watch it
 * over a cut, read what it gives, bring a file and fetch it, be refused.
 *
 *     QFLOW_REGISTRY=127.0.0.1:7101 QFLOW_ORCHESTRATOR=127.0.0.1:7102 QFLOW_RUNNER=127.0.0.1:7103 \
 *     QFLOW_EMAIL=owner@localhost QFLOW_PASSWORD=… npm run example
 */
import { createHash, randomUUID } from "node:crypto";

import { Code } from "@connectrpc/connect";
import { parse, stringify } from "lossless-json";

import { Client, optionsFromEnvironment, refused } from "@qflow/client";
import { ExecutionService } from "@qflow/client/orchestrator/v1/execution_service";
import { NodeService } from "@qflow/client/registry/v1/node_service";
import { SessionService } from "@qflow/client/registry/v1/session_service";
import { WorkflowService } from "@qflow/client/registry/v1/workflow_service";
import { FileService } from "@qflow/client/runner/v1/file_service";
import { UploadService } from "@qflow/client/runner/v1/upload_service";

const NEXT = `def next_number(n: int) -> int:
    return n + 1
`;
const TELL = `import time


def tell(name: str, n: int) -> str:
    time.sleep(2)  # time to watch
    return f"{name}: {n}"
`;
const NAME = "Zoë · 東京 🚲";
const NUMBER = 2n ** 53n + 1n; // no number of JavaScript's holds it

async function main(): Promise<void> {
  const client = new Client(optionsFromEnvironment());
  try {
    const session = await client.of(SessionService).signIn({
      email: process.env.QFLOW_EMAIL,
      password: process.env.QFLOW_PASSWORD,
    });
    client.token = session.token;
    console.log("signed in:", session.caller?.email);
    const execution = await start(client, await createWorkflow(client));
    await watch(client, execution);
    await files(client);
    await isRefused(client);
  } finally {
    client.close();
  }
}

async function createWorkflow(client: Client): Promise<string> {
  const create = async (place: string, code: string) => {
    const made = await client
      .of(NodeService)
      .createNode({ name: `trip: ${place}`, code, requestId: randomUUID() });
    return made.node!.id;
  };
  const [next, tell] = [await create("next", NEXT), await create("tell", TELL)];
  const made = await client.of(WorkflowService).createWorkflow({
    name: "trip",
    activate: true,
    requestId: randomUUID(),
    definition: {
      nodes: [
        { id: "next", nodeId: next },
        { id: "tell", nodeId: tell },
      ],
      inputs: [{ name: "name" }, { name: "n" }],
      connections: [
        { sourceOutput: "n", targetNode: "next", targetInput: "n" },
        { sourceOutput: "name", targetNode: "tell", targetInput: "name" },
        { sourceNode: "next", sourceOutput: "result", targetNode: "tell", targetInput: "n" },
      ],
      outputs: [
        { name: "number", sourceNode: "next", sourceOutput: "result" },
        { name: "text", sourceNode: "tell", sourceOutput: "result" },
      ],
    },
  });
  return made.workflow!.id;
}

/** Asks twice, as one does whose first answer was lost: there is one run. */
async function start(client: Client, workflowId: string): Promise<string> {
  const request = {
    workflowId,
    inputJson: stringify({ name: NAME, n: NUMBER }),
    requestId: randomUUID(),
  };
  const first = await client.of(ExecutionService).startExecution(request);
  const again = await client.of(ExecutionService).startExecution(request);
  if (first.execution!.id !== again.execution!.id || !again.existing) {
    throw new Error("two runs of one request");
  }
  console.log("started once:", first.execution!.id);
  return first.execution!.id;
}

/** Leaves after the first state and goes on from its revision, as after a restart of its own. */
async function watch(client: Client, execution: string): Promise<void> {
  let seen = 0n;
  for await (const step of client.watch(execution)) {
    seen = step.revision;
    if (seen > 0n) break;
  }
  console.log("watching again after revision", String(seen));
  for await (const _ of client.watch(execution, seen));
  const ended = await client.of(ExecutionService).getExecution({ executionId: execution });
  const output = ended.execution?.output;
  if (output?.case !== "outputJson") throw new Error("the run failed");
  const told = parse(output.value, undefined, (digits) => BigInt(digits)) as { number: bigint; text: string };
  console.log("number:", String(told.number));
  console.log("text:", told.text);
  if (told.number !== NUMBER + 1n || told.text !== `${NAME}: ${NUMBER + 1n}`) {
    throw new Error("values have changed on the way");
  }
}

async function files(client: Client): Promise<void> {
  const content = Buffer.from("Grüße\n".repeat(30_000));
  const uploads = client.of(UploadService);
  const { upload } = await uploads.createUpload({
    filename: "grüße.txt",
    sizeBytes: BigInt(content.length),
    requestId: randomUUID(),
  });
  const chunkBytes = 64 * 1024;
  async function* parts() {
    for (let at = 0; at < content.length; at += chunkBytes) {
      yield { uploadId: at === 0 ? upload!.id : "", chunk: content.subarray(at, at + chunkBytes) };
    }
  }
  await uploads.writeUpload(parts());
  const { file } = await uploads.finishUpload({
    uploadId: upload!.id,
    sha256: createHash("sha256").update(content).digest("hex"),
    requestId: randomUUID(),
  });
  const back: Uint8Array[] = [];
  for await (const { part } of client.of(FileService).downloadFile({ fileId: file!.id })) {
    if (part.case === "chunk") back.push(part.value);
  }
  if (!content.equals(Buffer.concat(back))) throw new Error("the file is another");
  console.log("file:", file!.filename, content.length, "bytes");
}

async function isRefused(client: Client): Promise<void> {
  try {
    await client.of(ExecutionService).startExecution({ workflowId: "no id", priority: 101 });
  } catch (error) {
    const refusal = refused(error);
    if (!refusal) throw error;
    console.log("refused:", Code[refusal.code], refusal.reason);
    for (const { field, description } of refusal.fields) console.log(`  ${field}: ${description}`);
    return;
  }
  throw new Error("it was not refused");
}

await main();
