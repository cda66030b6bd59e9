package dev.qflow.client;

import com.google.gson.Gson;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** One connection per service, opened when first used; hand them to the generated stubs. */
public final class Client implements AutoCloseable {
  static final List<String> SERVICES = List.of("registry", "orchestrator", "runner", "telemetry");
  private static final int MESSAGE_BYTES_MAX = 16 << 20;
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final Map<String, ManagedChannel> channels = new HashMap<>();
  private final Options options;
  private volatile String token;

  /** Makes the connections that the options have an address of. */
  public Client(Options options) throws IOException {
    this.options = options;
    this.token = options.token();
    for (Map.Entry<String, String> each : options.addresses().entrySet()) {
      channels.put(each.getKey(), open(each.getValue()));
    }
  }

  /** Gives the connection to the registry. */
  public Channel registry() {
    return channel("registry");
  }

  /** Gives the connection to the orchestrator. */
  public Channel orchestrator() {
    return channel("orchestrator");
  }

  /** Gives the connection to the runner. */
  public Channel runner() {
    return channel("runner");
  }

  /** Gives the connection to telemetry. */
  public Channel telemetry() {
    return channel("telemetry");
  }

  /** Makes later calls carry this token; empty for none. */
  public void setToken(String token) {
    this.token = token;
  }

  /**
   * Gives the steps of a run after a revision (0: all that stands) until the run is over. A watch that is cut goes on
   * after the last revision that it gave.
   */
  public Watch watch(String executionId, long afterRevision) {
    return new Watch(orchestrator(), executionId, afterRevision);
  }

  /** Ends the connections; calls under way end as cancelled. */
  @Override
  public void close() {
    channels.values().forEach(ManagedChannel::shutdownNow);
  }

  private Channel channel(String service) {
    ManagedChannel channel = channels.get(service);
    if (channel == null) {
      throw new IllegalStateException("no address of the " + service + " is told");
    }
    return ClientInterceptors.intercept(channel, new Manners(), new Cuts());
  }

  private ManagedChannel open(String address) throws IOException {
    ManagedChannelBuilder<?> builder;
    if (options.tls() || !options.caFile().isEmpty()) {
      TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
      if (!options.caFile().isEmpty()) {
        tls.trustManager(new File(options.caFile()));
      }
      if (!options.certificateFile().isEmpty()) {
        tls.keyManager(new File(options.certificateFile()), new File(options.keyFile()));
      }
      builder = Grpc.newChannelBuilder(address, tls.build());
    } else {
      builder = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create());
    }
    if (!options.serverName().isEmpty()) {
      builder.overrideAuthority(options.serverName());
    }
    return builder
        .defaultServiceConfig(serviceConfig())
        .enableRetry()
        .maxInboundMessageSize(MESSAGE_BYTES_MAX)
        .build();
  }

  /** Reads the published configuration of calls: which are tried again, when, and how often. */
  @SuppressWarnings("unchecked")
  private static Map<String, ?> serviceConfig() throws IOException {
    try (Reader text =
        new InputStreamReader(
            Client.class.getResourceAsStream("/qflow-service-config.json"), StandardCharsets.UTF_8)) {
      return new Gson().fromJson(text, Map.class);
    }
  }

  /** Puts the token on every call, and a deadline on unary ones that have none. */
  private final class Manners implements ClientInterceptor {
    @Override
    public <Q, A> ClientCall<Q, A> interceptCall(
        MethodDescriptor<Q, A> method, CallOptions callOptions, Channel next) {
      boolean unary = method.getType() == MethodDescriptor.MethodType.UNARY;
      CallOptions limited =
          unary && callOptions.getDeadline() == null
              ? callOptions.withDeadlineAfter(options.deadline().toMillis(), TimeUnit.MILLISECONDS)
              : callOptions;
      return new SimpleForwardingClientCall<>(next.newCall(method, limited)) {
        @Override
        public void start(Listener<A> listener, Metadata headers) {
          if (!token.isEmpty()) {
            headers.put(AUTHORIZATION, "Bearer " + token);
          }
          super.start(listener, headers);
        }
      };
    }
  }
}
