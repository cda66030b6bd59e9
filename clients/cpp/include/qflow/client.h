// Connects to a Qflow: addresses, TLS, token, deadlines, and which calls are tried again. The calls
// themselves are the generated stubs, qflow/*/v1/*.grpc.pb.h.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qflow/orchestrator/v1/execution_service.grpc.pb.h"

namespace qflow {

// Where a Qflow is, and as whom it is called.
struct Options {
  // The addresses of the services, host:port; those that are not called may stay empty.
  std::string registry, orchestrator, runner, telemetry;
  // A bearer token; empty until Client::set_token, for signing in.
  std::string token;
  // Whether connections are encrypted; without a ca_file gRPC's own authorities are believed.
  bool tls = false;
  // The authority to believe, PEM; implies tls.
  std::string ca_file;
  // Who one is where the server asks for it, PEM: mutual TLS.
  std::string certificate_file, key_file;
  // The name in the server's certificate, where that is not the host of the address.
  std::string server_name;
  // How long a unary call may take.
  std::chrono::milliseconds deadline = std::chrono::seconds(60);

  // Reads QFLOW_REGISTRY, QFLOW_ORCHESTRATOR, QFLOW_RUNNER, QFLOW_TELEMETRY, QFLOW_TOKEN,
  // QFLOW_CA_FILE, QFLOW_CERTIFICATE_FILE and QFLOW_KEY_FILE.
  static Options from_environment();
};

// One channel per service, opened when first used; hand them to the generated stubs.
class Client {
 public:
  // Throws std::runtime_error where a file cannot be read.
  explicit Client(Options options);

  std::shared_ptr<grpc::Channel> registry() const { return registry_; }
  std::shared_ptr<grpc::Channel> orchestrator() const { return orchestrator_; }
  std::shared_ptr<grpc::Channel> runner() const { return runner_; }
  std::shared_ptr<grpc::Channel> telemetry() const { return telemetry_; }

  // Makes later calls carry this token; empty for none. Not while calls are being made.
  void set_token(std::string token) { options_.token = std::move(token); }

  // Gives the context of one unary call: with the token, and the deadline.
  std::unique_ptr<grpc::ClientContext> context() const;

  // Gives the context of one stream: with the token, without a deadline.
  std::unique_ptr<grpc::ClientContext> stream_context() const;

 private:
  std::shared_ptr<grpc::Channel> open(const std::string& address) const;

  Options options_;
  std::shared_ptr<grpc::Channel> registry_, orchestrator_, runner_, telemetry_;
};

// One field of a refused request, by its path, and what was wrong with it.
struct FieldViolation {
  std::string field, description;
};

// What a call was refused with.
struct Refusal {
  grpc::StatusCode code;
  std::string message;
  // A stable word in upper snake case; branch on it.
  std::string reason;
  // What it is about: ids, limits, the current etag.
  std::map<std::string, std::string> facts;
  // The fields of the request that were at fault.
  std::vector<FieldViolation> fields;
  // When to try again, where the server knows.
  std::optional<std::chrono::milliseconds> retry_after;
};

// Reads the status of a call that failed.
Refusal refused(const grpc::Status& status);

// Says whether a run with this status is over.
bool is_final(orchestrator::v1::ExecutionStatus status);

// Gives the steps of a run after a revision (0: all that stands) until the run is over, or `step`
// says false. A watch that is cut goes on after the last revision that it gave.
grpc::Status watch(const Client& client, const std::string& execution_id, std::int64_t after_revision,
                   const std::function<bool(const orchestrator::v1::WatchExecutionResponse&)>& step);

}  // namespace qflow
