use std::{
    env, fs, io,
    sync::{Arc, RwLock},
    time::Duration,
};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::connection::Connection;

const DEADLINE: Duration = Duration::from_secs(60);

/// Where a Qflow is, and as whom it is called.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The addresses of the services, `host:port`; those that are not called may stay empty.
    pub registry: String,
    pub orchestrator: String,
    pub runner: String,
    pub telemetry: String,
    /// A bearer token; empty until [`Client::set_token`], for signing in.
    pub token: String,
    /// Whether connections are encrypted; without a `ca_file` this machine's authorities are believed.
    pub tls: bool,
    /// The authority to believe, PEM; implies `tls`.
    pub ca_file: String,
    /// Who one is where the server asks for it, PEM: mutual TLS.
    pub certificate_file: String,
    pub key_file: String,
    /// The name in the server's certificate, where that is not the host of the address.
    pub server_name: String,
    /// How long a unary call may take that has no deadline; 60 s when unset.
    pub deadline: Option<Duration>,
}

impl Options {
    /// Reads QFLOW_REGISTRY, QFLOW_ORCHESTRATOR, QFLOW_RUNNER, QFLOW_TELEMETRY, QFLOW_TOKEN,
    /// QFLOW_CA_FILE, QFLOW_CERTIFICATE_FILE and QFLOW_KEY_FILE.
    pub fn from_environment() -> Self {
        let read = |name: &str| env::var(name).unwrap_or_default();
        Self {
            registry: read("QFLOW_REGISTRY"),
            orchestrator: read("QFLOW_ORCHESTRATOR"),
            runner: read("QFLOW_RUNNER"),
            telemetry: read("QFLOW_TELEMETRY"),
            token: read("QFLOW_TOKEN"),
            ca_file: read("QFLOW_CA_FILE"),
            certificate_file: read("QFLOW_CERTIFICATE_FILE"),
            key_file: read("QFLOW_KEY_FILE"),
            ..Self::default()
        }
    }
}

/// Why no client could be made of the options.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read.
    File(String, io::Error),
    /// An address or a certificate is none.
    Transport(tonic::transport::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, error) => write!(to, "{path} cannot be read: {error}"),
            Self::Transport(error) => write!(to, "address or certificate: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// One connection per service, opened when first used; hand clones to the generated stubs.
#[derive(Clone, Debug)]
pub struct Client {
    pub registry: Connection,
    pub orchestrator: Connection,
    pub runner: Connection,
    pub telemetry: Connection,
    token: Arc<RwLock<String>>,
}

impl Client {
    /// Makes the connections; must be called within a Tokio runtime.
    pub fn new(options: &Options) -> Result<Self, Error> {
        let tls = tls(options)?;
        let token = Arc::new(RwLock::new(options.token.clone()));
        let connect = |address: &str| -> Result<Connection, Error> {
            // What nobody gave an address of is never reached.
            let address = if address.is_empty() {
                "address.invalid:1"
            } else {
                address
            };
            let scheme = if tls.is_some() { "https" } else { "http" };
            let mut endpoint =
                Endpoint::from_shared(format!("{scheme}://{address}")).map_err(Error::Transport)?;
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(Error::Transport)?;
            }
            let deadline = options.deadline.unwrap_or(DEADLINE);
            Ok(Connection::new(
                endpoint.connect_lazy(),
                token.clone(),
                deadline,
            ))
        };
        Ok(Self {
            registry: connect(&options.registry)?,
            orchestrator: connect(&options.orchestrator)?,
            runner: connect(&options.runner)?,
            telemetry: connect(&options.telemetry)?,
            token,
        })
    }

    /// Makes later calls carry this token; empty for none.
    pub fn set_token(&self, token: &str) {
        *self.token.write().expect("nobody panics with it") = token.to_owned();
    }
}

fn tls(options: &Options) -> Result<Option<ClientTlsConfig>, Error> {
    if !options.tls && options.ca_file.is_empty() {
        return Ok(None);
    }
    let read = |path: &String| fs::read(path).map_err(|error| Error::File(path.clone(), error));
    let mut tls = ClientTlsConfig::new();
    tls = if options.ca_file.is_empty() {
        tls.with_native_roots()
    } else {
        tls.ca_certificate(Certificate::from_pem(read(&options.ca_file)?))
    };
    if !options.certificate_file.is_empty() {
        let (certificate, key) = (read(&options.certificate_file)?, read(&options.key_file)?);
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    if !options.server_name.is_empty() {
        tls = tls.domain_name(&options.server_name);
    }
    Ok(Some(tls))
}
