import { Code, ConnectError, type Transport } from "@connectrpc/connect";

import { serviceConfig } from "./gen/service_config.js";

interface Policy {
  maxAttempts: number;
  initialBackoff: string;
  maxBackoff: string;
  backoffMultiplier: number;
}

/** Which unary calls may be tried again: the published configuration of the contract, by path. */
const policies = new Map<string, Policy>();
for (const config of serviceConfig.methodConfig) {
  if (!("retryPolicy" in config) || !config.retryPolicy) continue;
  for (const { service, method } of config.name) {
    policies.set(`${service}/${method}`, config.retryPolicy as Policy);
  }
}

/** Tries a call again that changes nothing, where the service could not be reached; and gives calls
 * a deadline that have none. Streams have neither: whoever reads them knows where to go on. */
export function withRetries(transport: Transport, deadlineMs: number): Transport {
  return {
    stream: transport.stream.bind(transport),
    async unary(method, signal, timeoutMs, header, input, contextValues) {
      const ends = Date.now() + (timeoutMs ?? deadlineMs);
      const policy = policies.get(`${method.parent.typeName}/${method.name}`);
      let backoff = policy ? seconds(policy.initialBackoff) : 0;
      for (let attempt = 1; ; attempt++) {
        const left = Math.max(1, ends - Date.now());
        try {
          return await transport.unary(method, signal, left, header, input, contextValues);
        } catch (error) {
          const pause = backoff * (0.8 + 0.4 * Math.random());
          const spent = !policy || attempt >= policy.maxAttempts || Date.now() + pause >= ends;
          if (!isLost(error) || spent || signal?.aborted) throw error;
          await new Promise((wake) => setTimeout(wake, pause));
          backoff = Math.min(backoff * policy.backoffMultiplier, seconds(policy.maxBackoff));
        }
      }
    },
  };
}

/** Says whether a call failed because the service was not reached, or its connection ended: then Node
 * tells of a stream that was aborted or cancelled. Of calls that change nothing, a service says neither. */
export function isLost(error: unknown): boolean {
  return [Code.Unavailable, Code.Aborted, Code.Canceled].includes(ConnectError.from(error).code);
}

/** Reads a span as JSON has it, "0.1s", in milliseconds. */
function seconds(text: string): number {
  return 1000 * Number.parseFloat(text);
}
