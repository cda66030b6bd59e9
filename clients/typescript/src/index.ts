/** Connects to a Qflow: `new Client(…)`, and `client.of(NodeService)` for the calls of a service. */
export { type Options, Client, optionsFromEnvironment } from "./client.js";
export { type FieldViolation, type Refusal, refused } from "./refusal.js";
export { isFinal } from "./watch.js";
