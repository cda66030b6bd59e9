// The whole trip: sign in, create two nodes from source and a workflow of them, start it, watch it
// over a cut, read what it gives, bring a file and fetch it, be refused.
//
// It reads QFLOW_REGISTRY, QFLOW_ORCHESTRATOR, QFLOW_RUNNER (127.0.0.1:7101 and so on), QFLOW_EMAIL and
// QFLOW_PASSWORD.
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <array>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "qflow/client.h"
#include "qflow/registry/v1/node_service.grpc.pb.h"
#include "qflow/registry/v1/session_service.grpc.pb.h"
#include "qflow/registry/v1/workflow_service.grpc.pb.h"
#include "qflow/runner/v1/file_service.grpc.pb.h"
#include "qflow/runner/v1/upload_service.grpc.pb.h"

namespace {

namespace orchestrator = qflow::orchestrator::v1;
namespace registry = qflow::registry::v1;
namespace runner = qflow::runner::v1;

constexpr char kNext[] = "def next_number(n: int) -> int:\n    return n + 1\n";
constexpr char kTell[] = R"(import time


def tell(name: str, n: int) -> str:
    time.sleep(2)  # time to watch
    return f"{name}: {n}"
)";
const std::string kName = "Zoë · 東京 🚲";
constexpr std::int64_t kNumber = (std::int64_t{1} << 53) + 1;  // no double holds it
constexpr std::size_t kChunkBytes = 64 * 1024;

void check(bool holds, const std::string& otherwise) {
  if (!holds) throw std::runtime_error(otherwise);
}

void check(const grpc::Status& status) {
  check(status.ok(), std::to_string(status.error_code()) + ": " + status.error_message());
}

std::string hexadecimal(const unsigned char* bytes, std::size_t size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (std::size_t at = 0; at < size; ++at) {
    text += kDigits[bytes[at] >> 4];
    text += kDigits[bytes[at] & 15];
  }
  return text;
}

std::string new_id() {  // a random UUID
  std::array<unsigned char, 16> bytes;
  check(RAND_bytes(bytes.data(), bytes.size()) == 1, "no randomness");
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  std::string text = hexadecimal(bytes.data(), bytes.size());
  for (const int at : {20, 16, 12, 8}) text.insert(at, "-");
  return text;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void sign_in(qflow::Client& client) {
  registry::SignInRequest request;
  request.set_email(environment("QFLOW_EMAIL"));
  request.set_password(environment("QFLOW_PASSWORD"));
  registry::SignInResponse session;
  const auto stub = registry::SessionService::NewStub(client.registry());
  check(stub->SignIn(client.context().get(), request, &session));
  client.set_token(session.token());
  std::cout << "signed in: " << session.caller().email() << std::endl;
}

std::string create_node(const qflow::Client& client, const std::string& place, const char* code) {
  registry::CreateNodeRequest request;
  request.set_name("trip: " + place);
  request.set_code(code);
  request.set_request_id(new_id());
  registry::CreateNodeResponse made;
  const auto stub = registry::NodeService::NewStub(client.registry());
  check(stub->CreateNode(client.context().get(), request, &made));
  return made.node().id();
}

void add_edge(registry::WorkflowDefinition& graph, const char* source, const char* output, const char* target,
              const char* input) {
  auto& edge = *graph.add_connections();
  edge.set_source_node(source);
  edge.set_source_output(output);
  edge.set_target_node(target);
  edge.set_target_input(input);
}

std::string create_workflow(const qflow::Client& client) {
  registry::CreateWorkflowRequest request;
  request.set_name("trip");
  request.set_activate(true);
  request.set_request_id(new_id());
  auto& graph = *request.mutable_definition();
  for (const auto& [place, code] : {std::pair{"next", kNext}, std::pair{"tell", kTell}}) {
    auto& node = *graph.add_nodes();
    node.set_id(place);
    node.set_node_id(create_node(client, place, code));
  }
  for (const char* name : {"name", "n"}) graph.add_inputs()->set_name(name);
  add_edge(graph, "", "n", "next", "n");
  add_edge(graph, "", "name", "tell", "name");
  add_edge(graph, "next", "result", "tell", "n");
  for (const auto& [name, node] : {std::pair{"number", "next"}, std::pair{"text", "tell"}}) {
    auto& output = *graph.add_outputs();
    output.set_name(name);
    output.set_source_node(node);
    output.set_source_output("result");
  }
  registry::CreateWorkflowResponse made;
  const auto stub = registry::WorkflowService::NewStub(client.registry());
  check(stub->CreateWorkflow(client.context().get(), request, &made));
  return made.workflow().id();
}

// Asks twice, as one does whose first answer was lost: there is one run.
std::string start(const qflow::Client& client, const std::string& workflow) {
  orchestrator::StartExecutionRequest request;
  request.set_workflow_id(workflow);
  request.set_input_json(nlohmann::json{{"name", kName}, {"n", kNumber}}.dump());
  request.set_request_id(new_id());
  orchestrator::StartExecutionResponse first, again;
  const auto stub = orchestrator::ExecutionService::NewStub(client.orchestrator());
  check(stub->StartExecution(client.context().get(), request, &first));
  check(stub->StartExecution(client.context().get(), request, &again));
  const auto& id = first.execution().id();
  check(id == again.execution().id() && again.existing(), "two runs of one request");
  std::cout << "started once: " << id << std::endl;
  return id;
}

// Leaves after the first state and goes on from its revision, as after a restart of its own.
void watch(const qflow::Client& client, const std::string& execution) {
  std::int64_t seen = 0;
  check(qflow::watch(client, execution, 0, [&](const auto& step) {
    seen = step.revision();
    return seen == 0;
  }));
  std::cout << "watching again after revision " << seen << std::endl;
  check(qflow::watch(client, execution, seen, [](const auto&) { return true; }));
  orchestrator::GetExecutionRequest request;
  request.set_execution_id(execution);
  orchestrator::GetExecutionResponse ended;
  const auto stub = orchestrator::ExecutionService::NewStub(client.orchestrator());
  check(stub->GetExecution(client.context().get(), request, &ended));
  const auto told = nlohmann::json::parse(ended.execution().output_json());
  const auto number = told.at("number").get<std::int64_t>();
  const auto text = told.at("text").get<std::string>();
  std::cout << "number: " << number << std::endl << "text: " << text << std::endl;
  check(number == kNumber + 1 && text == kName + ": " + std::to_string(kNumber + 1), "values have changed on the way");
}

void write(const qflow::Client& client, const std::string& id, const std::string& content) {
  const auto stub = runner::UploadService::NewStub(client.runner());
  const auto context = client.stream_context();
  runner::WriteUploadResponse written;
  const auto parts = stub->WriteUpload(context.get(), &written);
  for (std::size_t at = 0; at < content.size(); at += kChunkBytes) {
    runner::WriteUploadRequest part;
    if (at == 0) part.set_upload_id(id);
    part.set_chunk(content.substr(at, kChunkBytes));
    if (!parts->Write(part)) break;  // the status below says why
  }
  parts->WritesDone();
  check(parts->Finish());
}

void files(const qflow::Client& client) {
  std::string content;
  for (int line = 0; line < 30'000; ++line) content += "Grüße\n";
  const auto uploads = runner::UploadService::NewStub(client.runner());
  runner::CreateUploadRequest beginning;
  beginning.set_filename("grüße.txt");
  beginning.set_size_bytes(static_cast<std::int64_t>(content.size()));
  beginning.set_request_id(new_id());
  runner::CreateUploadResponse begun;
  check(uploads->CreateUpload(client.context().get(), beginning, &begun));
  write(client, begun.upload().id(), content);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  check(EVP_Digest(content.data(), content.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1, "no digest");
  runner::FinishUploadRequest finishing;
  finishing.set_upload_id(begun.upload().id());
  finishing.set_sha256(hexadecimal(digest.data(), size));
  finishing.set_request_id(new_id());
  runner::FinishUploadResponse finished;
  check(uploads->FinishUpload(client.context().get(), finishing, &finished));
  runner::DownloadFileRequest request;
  request.set_file_id(finished.file().id());
  const auto context = client.stream_context();
  const auto parts = runner::FileService::NewStub(client.runner())->DownloadFile(context.get(), request);
  std::string back;
  for (runner::DownloadFileResponse part; parts->Read(&part);) back += part.chunk();
  check(parts->Finish());
  check(back == content, "the file is another");
  std::cout << "file: " << finished.file().filename() << " " << back.size() << " bytes" << std::endl;
}

void refused(const qflow::Client& client) {
  orchestrator::StartExecutionRequest request;
  request.set_workflow_id("no id");
  request.set_priority(101);
  orchestrator::StartExecutionResponse answer;
  const auto stub = orchestrator::ExecutionService::NewStub(client.orchestrator());
  const auto status = stub->StartExecution(client.context().get(), request, &answer);
  check(!status.ok(), "it was not refused");
  const auto refusal = qflow::refused(status);
  std::cout << "refused: " << refusal.code << " " << refusal.reason << std::endl;
  for (const auto& each : refusal.fields) {
    std::cout << "  " << each.field << ": " << each.description << std::endl;
  }
}

}  // namespace

int main() {
  try {
    qflow::Client client(qflow::Options::from_environment());
    sign_in(client);
    watch(client, start(client, create_workflow(client)));
    files(client);
    refused(client);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
