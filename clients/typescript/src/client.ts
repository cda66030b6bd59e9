import { readFileSync } from "node:fs";

import type { DescService } from "@bufbuild/protobuf";
import { type Client as Stub, type Interceptor, type Transport, createClient } from "@connectrpc/connect";
import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";

import type { WatchExecutionResponse } from "./gen/qflow/orchestrator/v1/execution_service_pb.js";
import { withRetries } from "./retries.js";
import { watch } from "./watch.js";

const DEADLINE_MS = 60_000;

/** Where a Qflow is, and as whom it is called. */
export interface Options {
  /** The addresses of the services, `host:port`; those that are not called may be left out. */
  registry?: string;
  orchestrator?: string;
  runner?: string;
  telemetry?: string;
  /** A bearer token; none until `client.token` is set, for signing in. */
  token?: string;
  /** Whether connections are encrypted; without a `caFile` the authorities of Node are believed. */
  tls?: boolean;
  /** The authority to believe, PEM; implies `tls`. */
  caFile?: string;
  /** Who one is where the server asks for it, PEM: mutual TLS. */
  certificateFile?: string;
  keyFile?: string;
  /** The name in the server's certificate, where that is not the host of the address. */
  serverName?: string;
  /** How long a unary call may take that says nothing else; 60 s by default. */
  deadlineMs?: number;
}

/** Reads QFLOW_REGISTRY, QFLOW_ORCHESTRATOR, QFLOW_RUNNER, QFLOW_TELEMETRY, QFLOW_TOKEN,
 * QFLOW_CA_FILE, QFLOW_CERTIFICATE_FILE and QFLOW_KEY_FILE. */
export function optionsFromEnvironment(env: NodeJS.ProcessEnv = process.env): Options {
  return {
    registry: env.QFLOW_REGISTRY,
    orchestrator: env.QFLOW_ORCHESTRATOR,
    runner: env.QFLOW_RUNNER,
    telemetry: env.QFLOW_TELEMETRY,
    token: env.QFLOW_TOKEN,
    caFile: env.QFLOW_CA_FILE,
    certificateFile: env.QFLOW_CERTIFICATE_FILE,
    keyFile: env.QFLOW_KEY_FILE,
  };
}

/** The connections to the four services, opened when first used. Give them back with `close`. */
export class Client {
  /** What calls carry as bearer token; empty for none. */
  token: string;
  closed = false;
  readonly #options: Options;
  readonly #open = new Map<string, { transport: Transport; sessions: Http2SessionManager }>();

  constructor(options: Options) {
    this.#options = options;
    this.token = options.token ?? "";
  }

  /** Gives the calls of a service: `client.of(NodeService).createNode(…)`. */
  of<Service extends DescService>(service: Service): Stub<Service> {
    return createClient(service, this.#transport(serviceOf(service.typeName)));
  }

  /** Gives the steps of a run after a revision (0: all that stands) until the run is over. A watch
   * that is cut goes on after the last revision that it gave. */
  watch(executionId: string, afterRevision = 0n): AsyncGenerator<WatchExecutionResponse> {
    return watch(this, executionId, afterRevision);
  }

  /** Ends the connections; calls under way fail. */
  close(): void {
    this.closed = true;
    for (const { sessions } of this.#open.values()) sessions.abort();
    this.#open.clear();
  }

  #transport(service: keyof Options & string): Transport {
    const known = this.#open.get(service);
    if (known) return known.transport;
    const address = this.#options[service];
    if (!address) throw new Error(`no address of the ${service} is told`);
    const made = this.#connect(String(address));
    this.#open.set(service, made);
    return made.transport;
  }

  #connect(address: string): { transport: Transport; sessions: Http2SessionManager } {
    const { caFile, certificateFile, keyFile, serverName } = this.#options;
    const encrypted = this.#options.tls || caFile;
    const read = (path?: string) => (path ? readFileSync(path) : undefined);
    const baseUrl = `${encrypted ? "https" : "http"}://${address}`;
    const sessions = new Http2SessionManager(
      baseUrl,
      undefined,
      encrypted
        ? { ca: read(caFile), cert: read(certificateFile), key: read(keyFile), servername: serverName }
        : undefined,
    );
    const bearer: Interceptor = (next) => (request) => {
      if (this.token) request.header.set("authorization", `Bearer ${this.token}`);
      return next(request);
    };
    const plain = createGrpcTransport({ baseUrl, sessionManager: sessions, interceptors: [bearer] });
    return { transport: withRetries(plain, this.#options.deadlineMs ?? DEADLINE_MS), sessions };
  }
}

function serviceOf(typeName: string): "registry" | "orchestrator" | "runner" | "telemetry" {
  const name = typeName.split(".")[1];
  switch (name) {
    case "registry":
    case "orchestrator":
    case "runner":
    case "telemetry":
      return name;
    default:
      throw new Error(`${typeName} is no service of Qflow`);
  }
}
