package dev.qflow.client;

import dev.qflow.orchestrator.v1.ExecutionServiceGrpc;
import dev.qflow.orchestrator.v1.WatchExecutionRequest;
import dev.qflow.orchestrator.v1.WatchExecutionResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.nio.channels.ClosedChannelException;
import java.util.concurrent.atomic.AtomicReference;

/** Prints with which status a call ends that gRPC, or a service, ended with another. */
public final class CutsCheck {
  public static void main(String[] unused) {
    Status closed = Status.UNKNOWN.withDescription("channel closed").withCause(new ClosedChannelException());
    System.out.println("cut while writing: " + seen(closed));
    System.out.println("said by a service: " + seen(Status.UNKNOWN.withDescription("channel closed")));
    System.out.println("refused: " + seen(Status.NOT_FOUND));
  }

  private static Status.Code seen(Status ended) {
    AtomicReference<Status> told = new AtomicReference<>();
    ClientCall<WatchExecutionRequest, WatchExecutionResponse> call =
        ClientInterceptors.intercept(new Ending(ended), new Cuts())
            .newCall(ExecutionServiceGrpc.getWatchExecutionMethod(), CallOptions.DEFAULT);
    call.start(
        new ClientCall.Listener<>() {
          @Override
          public void onClose(Status status, Metadata trailers) {
            told.set(status);
          }
        },
        new Metadata());
    return told.get().getCode();
  }

  /** A connection on which every call ends at once, with one status. */
  private static final class Ending extends Channel {
    private final Status status;

    private Ending(Status status) {
      this.status = status;
    }

    @Override
    public String authority() {
      return "";
    }

    @Override
    public <Q, A> ClientCall<Q, A> newCall(MethodDescriptor<Q, A> method, CallOptions options) {
      return new ClientCall<>() {
        @Override
        public void start(Listener<A> listener, Metadata headers) {
          listener.onClose(status, new Metadata());
        }

        @Override
        public void request(int messages) {}

        @Override
        public void cancel(String message, Throwable cause) {}

        @Override
        public void halfClose() {}

        @Override
        public void sendMessage(Q message) {}
      };
    }
  }
}
