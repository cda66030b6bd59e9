package dev.qflow.client;

import java.time.Duration;
import java.util.HashMap;
import java.util.Map;

/**
 * Where a Qflow is, and as whom it is called.
 *
 * @param addresses service (registry, orchestrator, runner, telemetry) to {@code host:port}
 * @param token a bearer token; empty until {@link Client#setToken}, for signing in
 * @param tls whether connections are encrypted; without a caFile the JVM's authorities are believed
 * @param caFile the authority to believe, PEM; implies tls
 * @param certificateFile who one is where the server asks for it, PEM: mutual TLS
 * @param keyFile the key of that certificate, PKCS #8 PEM
 * @param serverName the name in the server's certificate, where that is not the host of the address
 * @param deadline how long a unary call may take that has no deadline
 */
public record Options(
    Map<String, String> addresses,
    String token,
    boolean tls,
    String caFile,
    String certificateFile,
    String keyFile,
    String serverName,
    Duration deadline) {

  /** How long a unary call may take, unless something else is said. */
  public static final Duration DEADLINE = Duration.ofSeconds(60);

  /** Reads QFLOW_REGISTRY and the other services', QFLOW_TOKEN, QFLOW_CA_FILE, QFLOW_CERTIFICATE_FILE, QFLOW_KEY_FILE. */
  public static Options fromEnvironment() {
    Map<String, String> addresses = new HashMap<>();
    for (String service : Client.SERVICES) {
      String address = read("QFLOW_" + service.toUpperCase(java.util.Locale.ROOT));
      if (!address.isEmpty()) {
        addresses.put(service, address);
      }
    }
    String ca = read("QFLOW_CA_FILE");
    return new Options(
        Map.copyOf(addresses),
        read("QFLOW_TOKEN"),
        !ca.isEmpty(),
        ca,
        read("QFLOW_CERTIFICATE_FILE"),
        read("QFLOW_KEY_FILE"),
        "",
        DEADLINE);
  }

  private static String read(String name) {
    return System.getenv().getOrDefault(name, "");
  }
}
