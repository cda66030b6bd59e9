import { Code, ConnectError } from "@connectrpc/connect";

import type { Client } from "./client.js";
import { isLost } from "./retries.js";
import { ExecutionStatus, ExecutionView } from "./gen/qflow/orchestrator/v1/execution_pb.js";
import { ExecutionService, type WatchExecutionResponse } from "./gen/qflow/orchestrator/v1/execution_service_pb.js";

const PAUSE_MIN_MS = 100;
const PAUSE_MAX_MS = 5_000;
/** Longer than a restart of a service takes; after that the cut is the caller's to see. */
const AWAY_MAX_MS = 60_000;

/** Says whether a run with this status is over. */
export function isFinal(status?: ExecutionStatus): boolean {
  return (
    status === ExecutionStatus.COMPLETED ||
    status === ExecutionStatus.FAILED ||
    status === ExecutionStatus.CANCELLED
  );
}

/** See Client.watch. */
export async function* watch(
  client: Client,
  executionId: string,
  afterRevision: bigint,
): AsyncGenerator<WatchExecutionResponse> {
  const executions = client.of(ExecutionService);
  let pause = PAUSE_MIN_MS;
  let away = 0;
  for (;;) {
    let cut: unknown;
    try {
      for await (const step of executions.watchExecution({ executionId, afterRevision })) {
        [pause, away] = [PAUSE_MIN_MS, 0];
        afterRevision = step.revision;
        yield step;
        const { event } = step;
        const told = event.case === "snapshot" || event.case === "delta";
        if (told && isFinal(event.value.execution?.status)) return;
      }
      // It may have been over at the revision that the watch goes on after.
      const { execution } = await executions.getExecution({ executionId, view: ExecutionView.BASIC });
      if (isFinal(execution?.status)) return;
    } catch (error) {
      if (!isLost(error) || client.closed) throw error;
      cut = error;
    }
    if (away >= AWAY_MAX_MS) throw cut ?? new ConnectError("the watch ends again and again", Code.Unavailable);
    await new Promise((wake) => setTimeout(wake, pause));
    away += pause;
    pause = Math.min(2 * pause, PAUSE_MAX_MS);
  }
}
