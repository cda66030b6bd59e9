#include "qflow/client.h"

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "service_config.h"

namespace qflow {
namespace {

constexpr int kMessageBytesMax = 16 << 20;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string contents(const std::string& path) {
  if (path.empty()) return "";
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) throw std::runtime_error(path + " cannot be read");
  return text.str();
}

}  // namespace

Options Options::from_environment() {
  Options options;
  options.registry = environment("QFLOW_REGISTRY");
  options.orchestrator = environment("QFLOW_ORCHESTRATOR");
  options.runner = environment("QFLOW_RUNNER");
  options.telemetry = environment("QFLOW_TELEMETRY");
  options.token = environment("QFLOW_TOKEN");
  options.ca_file = environment("QFLOW_CA_FILE");
  options.certificate_file = environment("QFLOW_CERTIFICATE_FILE");
  options.key_file = environment("QFLOW_KEY_FILE");
  return options;
}

Client::Client(Options options) : options_(std::move(options)) {
  registry_ = open(options_.registry);
  orchestrator_ = open(options_.orchestrator);
  runner_ = open(options_.runner);
  telemetry_ = open(options_.telemetry);
}

std::shared_ptr<grpc::Channel> Client::open(const std::string& address) const {
  if (address.empty()) return nullptr;
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  if (!options_.tls && options_.ca_file.empty()) {
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }
  if (!options_.server_name.empty()) arguments.SetSslTargetNameOverride(options_.server_name);
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = contents(options_.ca_file);
  tls.pem_cert_chain = contents(options_.certificate_file);
  tls.pem_private_key = contents(options_.key_file);
  return grpc::CreateCustomChannel(address, grpc::SslCredentials(tls), arguments);
}

std::unique_ptr<grpc::ClientContext> Client::context() const {
  auto context = stream_context();
  context->set_deadline(std::chrono::system_clock::now() + options_.deadline);
  return context;
}

std::unique_ptr<grpc::ClientContext> Client::stream_context() const {
  auto context = std::make_unique<grpc::ClientContext>();
  if (!options_.token.empty()) context->AddMetadata("authorization", "Bearer " + options_.token);
  return context;
}

}  // namespace qflow
