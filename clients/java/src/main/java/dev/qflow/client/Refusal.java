package dev.qflow.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * What a call was refused with.
 *
 * @param code the kind
 * @param message for people
 * @param reason a stable word in upper snake case; branch on it
 * @param facts what it is about: ids, limits, the current etag
 * @param fields the fields of the request that were at fault
 * @param retryAfter when to try again, where the server knows
 */
public record Refusal(
    Status.Code code,
    String message,
    String reason,
    Map<String, String> facts,
    List<FieldViolation> fields,
    Optional<Duration> retryAfter) {

  /**
   * One field at fault.
   *
   * @param field its path
   * @param description what was wrong with it
   */
  public record FieldViolation(String field, String description) {}

  /** Reads what a call threw. */
  public static Refusal of(StatusRuntimeException error) {
    String reason = "";
    Map<String, String> facts = Map.of();
    List<FieldViolation> fields = new ArrayList<>();
    Optional<Duration> retryAfter = Optional.empty();
    try {
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          reason = info.getReason();
          facts = info.getMetadataMap();
        } else if (detail.is(BadRequest.class)) {
          for (BadRequest.FieldViolation each : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            fields.add(new FieldViolation(each.getField(), each.getDescription()));
          }
        } else if (detail.is(RetryInfo.class)) {
          com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
          retryAfter = Optional.of(Duration.ofSeconds(delay.getSeconds(), delay.getNanos()));
        }
      }
    } catch (InvalidProtocolBufferException broken) {
      throw new IllegalArgumentException("the details of the error cannot be read", broken);
    }
    Status status = error.getStatus();
    String message = Optional.ofNullable(status.getDescription()).orElse("");
    return new Refusal(status.getCode(), message, reason, facts, List.copyOf(fields), retryAfter);
  }
}
