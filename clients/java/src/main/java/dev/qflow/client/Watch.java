package dev.qflow.client;

import dev.qflow.orchestrator.v1.Execution;
import dev.qflow.orchestrator.v1.ExecutionServiceGrpc;
import dev.qflow.orchestrator.v1.ExecutionStatus;
import dev.qflow.orchestrator.v1.ExecutionView;
import dev.qflow.orchestrator.v1.GetExecutionRequest;
import dev.qflow.orchestrator.v1.WatchExecutionRequest;
import dev.qflow.orchestrator.v1.WatchExecutionResponse;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Iterator;
import java.util.NoSuchElementException;

/** The steps of a run; close it when it is left early. */
public final class Watch implements Iterator<WatchExecutionResponse>, AutoCloseable {
  private static final long PAUSE_MIN_MS = 100;
  private static final long PAUSE_MAX_MS = 5_000;
  // Longer than a restart of a service takes; after that the cut is the caller's to see.
  private static final long AWAY_MAX_MS = 60_000;

  private final Context.CancellableContext context = Context.current().withCancellation();
  private final Channel channel;
  private final String executionId;
  private long revision;
  private boolean over;
  private Iterator<WatchExecutionResponse> steps;
  private WatchExecutionResponse next;

  Watch(Channel channel, String executionId, long afterRevision) {
    this.channel = channel;
    this.executionId = executionId;
    this.revision = afterRevision;
  }

  /** Says whether a run with this status is over. */
  public static boolean isFinal(ExecutionStatus status) {
    return status == ExecutionStatus.EXECUTION_STATUS_COMPLETED
        || status == ExecutionStatus.EXECUTION_STATUS_FAILED
        || status == ExecutionStatus.EXECUTION_STATUS_CANCELLED;
  }

  @Override
  public boolean hasNext() {
    if (next == null && !over) {
      next = read();
    }
    return next != null;
  }

  @Override
  public WatchExecutionResponse next() {
    if (!hasNext()) {
      throw new NoSuchElementException("the run is over");
    }
    WatchExecutionResponse step = next;
    next = null;
    revision = step.getRevision();
    over = isFinal(executionOf(step).getStatus());
    if (over) {
      close();
    }
    return step;
  }

  /** Ends the call. */
  @Override
  public void close() {
    over = true;
    context.cancel(null);
  }

  /** Gives the next step; where the connection is cut, opens another after the last revision. */
  private WatchExecutionResponse read() {
    long pause = PAUSE_MIN_MS;
    for (long away = 0; ; away += pause, pause = Math.min(2 * pause, PAUSE_MAX_MS)) {
      StatusRuntimeException cut = Status.UNAVAILABLE.withDescription("the watch ends again and again").asRuntimeException();
      try {
        if (steps == null) {
          steps = open();
        }
        if (steps.hasNext()) {
          return steps.next();
        }
        if (isOver()) {
          close();
          return null;
        }
      } catch (StatusRuntimeException error) {
        if (error.getStatus().getCode() != Status.Code.UNAVAILABLE) {
          throw error;
        }
        cut = error;
      }
      steps = null;
      if (away >= AWAY_MAX_MS) {
        throw cut;
      }
      try {
        Thread.sleep(pause);
      } catch (InterruptedException stopped) {
        Thread.currentThread().interrupt();
        throw Status.CANCELLED.withCause(stopped).asRuntimeException();
      }
    }
  }

  /** Asks whether the run was over at the revision that the watch goes on after. */
  private boolean isOver() {
    GetExecutionRequest request =
        GetExecutionRequest.newBuilder()
            .setExecutionId(executionId)
            .setView(ExecutionView.EXECUTION_VIEW_BASIC)
            .build();
    return isFinal(
        ExecutionServiceGrpc.newBlockingStub(channel).getExecution(request).getExecution().getStatus());
  }

  private Iterator<WatchExecutionResponse> open() {
    WatchExecutionRequest request =
        WatchExecutionRequest.newBuilder().setExecutionId(executionId).setAfterRevision(revision).build();
    Context before = context.attach();
    try {
      return ExecutionServiceGrpc.newBlockingStub(channel).watchExecution(request);
    } finally {
      context.detach(before);
    }
  }

  private static Execution executionOf(WatchExecutionResponse step) {
    return step.hasSnapshot() ? step.getSnapshot().getExecution() : step.getDelta().getExecution();
  }
}
