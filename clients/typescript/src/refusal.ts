import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** One field of a refused request, by its path, and what was wrong with it. */
export interface FieldViolation {
  field: string;
  description: string;
}

/** What a call was refused with. */
export interface Refusal {
  code: Code;
  message: string;
  /** A stable word in upper snake case; branch on it. */
  reason: string;
  /** What it is about: ids, limits, the current etag. */
  facts: Record<string, string>;
  /** The fields of the request that were at fault. */
  fields: FieldViolation[];
  /** When to try again, where the server knows. */
  retryAfterMs?: number;
}

/** Reads what a call threw; undefined for what no call gave. */
export function refused(error: unknown): Refusal | undefined {
  if (!(error instanceof ConnectError)) return undefined;
  const [info] = error.findDetails(ErrorInfoSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const delay = retry?.retryDelay;
  return {
    code: error.code,
    message: error.rawMessage,
    reason: info?.reason ?? "",
    facts: info?.metadata ?? {},
    fields: error
      .findDetails(BadRequestSchema)
      .flatMap((each) => each.fieldViolations.map(({ field, description }) => ({ field, description }))),
    retryAfterMs: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
  };
}
