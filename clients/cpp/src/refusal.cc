#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "qflow/client.h"

namespace qflow {

Refusal refused(const grpc::Status& status) {
  Refusal refusal{status.error_code(), status.error_message(), {}, {}, {}, {}};
  google::rpc::Status told;
  if (!told.ParseFromString(status.error_details())) return refusal;
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad;
  google::rpc::RetryInfo retry;
  for (const auto& detail : told.details()) {
    if (detail.UnpackTo(&info)) {
      refusal.reason = info.reason();
      refusal.facts.insert(info.metadata().begin(), info.metadata().end());
    } else if (detail.UnpackTo(&bad)) {
      for (const auto& each : bad.field_violations()) {
        refusal.fields.push_back({each.field(), each.description()});
      }
    } else if (detail.UnpackTo(&retry)) {
      const auto& delay = retry.retry_delay();
      refusal.retry_after = std::chrono::milliseconds(delay.seconds() * 1000 + delay.nanos() / 1000000);
    }
  }
  return refusal;
}

}  // namespace qflow
