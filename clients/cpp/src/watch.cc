#include <algorithm>
#include <thread>

#include "qflow/client.h"

namespace qflow {
namespace {

using orchestrator::v1::Execution;
using orchestrator::v1::ExecutionService;
using orchestrator::v1::WatchExecutionRequest;
using orchestrator::v1::WatchExecutionResponse;

constexpr std::chrono::milliseconds kPauseMin{100};
constexpr std::chrono::milliseconds kPauseMax{5'000};
// Longer than a restart of a service takes; after that the cut is the caller's to see.
constexpr std::chrono::milliseconds kAwayMax{60'000};

const Execution& execution_of(const WatchExecutionResponse& step) {
  return step.has_snapshot() ? step.snapshot().execution() : step.delta().execution();
}

}  // namespace

bool is_final(orchestrator::v1::ExecutionStatus status) {
  return status == orchestrator::v1::EXECUTION_STATUS_COMPLETED ||
         status == orchestrator::v1::EXECUTION_STATUS_FAILED ||
         status == orchestrator::v1::EXECUTION_STATUS_CANCELLED;
}

grpc::Status watch(const Client& client, const std::string& execution_id, std::int64_t after_revision,
                   const std::function<bool(const WatchExecutionResponse&)>& step) {
  const auto stub = ExecutionService::NewStub(client.orchestrator());
  WatchExecutionRequest request;
  request.set_execution_id(execution_id);
  request.set_after_revision(after_revision);
  auto pause = kPauseMin;
  std::chrono::milliseconds away{0};
  for (;;) {
    const auto context = client.stream_context();
    const auto steps = stub->WatchExecution(context.get(), request);
    WatchExecutionResponse next;
    while (steps->Read(&next)) {
      pause = kPauseMin;
      away = std::chrono::milliseconds(0);
      request.set_after_revision(next.revision());
      if (!step(next) || is_final(execution_of(next).status())) {
        context->TryCancel();
        return grpc::Status::OK;
      }
    }
    auto cut = steps->Finish();
    if (cut.ok()) {
      // It may have been over at the revision that the watch goes on after.
      orchestrator::v1::GetExecutionRequest question;
      question.set_execution_id(execution_id);
      question.set_view(orchestrator::v1::EXECUTION_VIEW_BASIC);
      orchestrator::v1::GetExecutionResponse now;
      cut = stub->GetExecution(client.context().get(), question, &now);
      if (cut.ok() && is_final(now.execution().status())) return cut;
    }
    if (!cut.ok() && cut.error_code() != grpc::StatusCode::UNAVAILABLE) return cut;
    if (away >= kAwayMax) {
      return cut.ok() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "the watch ends again and again") : cut;
    }
    std::this_thread::sleep_for(pause);
    away += pause;
    pause = std::min(2 * pause, kPauseMax);
  }
}

}  // namespace qflow
