use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, LazyLock, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tonic::{body::Body, transport::Channel};
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a call is tried again that changes nothing.
#[derive(Clone, Debug)]
struct Policy {
    attempts_max: u64,
    backoff_min: Duration,
    backoff_max: Duration,
    factor: u32,
}

/// The published configuration of the contract, by path: unary calls, and how they are repeated.
static UNARY: LazyLock<HashMap<String, Option<Policy>>> = LazyLock::new(|| {
    let config: Value = serde_json::from_str(include_str!("../service_config.json"))
        .expect("the configuration is generated");
    let mut found = HashMap::new();
    for each in config["methodConfig"].as_array().into_iter().flatten() {
        if each.get("timeout").is_none() {
            continue; // a stream
        }
        let policy = each.get("retryPolicy").map(|policy| Policy {
            attempts_max: policy["maxAttempts"].as_u64().unwrap_or(1),
            backoff_min: span(&policy["initialBackoff"]),
            backoff_max: span(&policy["maxBackoff"]),
            factor: policy["backoffMultiplier"].as_u64().unwrap_or(1) as u32,
        });
        for name in each["name"].as_array().into_iter().flatten() {
            let [service, method] =
                ["service", "method"].map(|key| name[key].as_str().unwrap_or(""));
            found.insert(format!("/{service}/{method}"), policy.clone());
        }
    }
    found
});

/// The connection to one service: puts the token on every call, and a deadline on unary ones; tries
/// those again that change nothing, where the service could not be reached.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    token: Arc<RwLock<String>>,
    deadline: Duration,
}

impl Connection {
    pub(crate) fn new(channel: Channel, token: Arc<RwLock<String>>, deadline: Duration) -> Self {
        Self {
            channel,
            token,
            deadline,
        }
    }

    fn prepare(&self, request: &mut Request<Body>) -> Option<Policy> {
        let token = self.token.read().expect("nobody panics with it").clone();
        if let (false, Ok(mut bearer)) = (
            token.is_empty(),
            HeaderValue::from_str(&format!("Bearer {token}")),
        ) {
            bearer.set_sensitive(true);
            request.headers_mut().insert("authorization", bearer);
        }
        let policy = UNARY.get(request.uri().path())?;
        let deadline = format!("{}m", self.deadline.as_millis());
        request
            .headers_mut()
            .entry("grpc-timeout")
            .or_insert(HeaderValue::from_str(&deadline).expect("digits"));
        policy.clone()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(())) // each try waits for the channel itself
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let policy = self.prepare(&mut request);
        let channel = self.channel.clone();
        match policy {
            Some(policy) => Box::pin(repeat(channel, request, policy)),
            None => Box::pin(send(channel, request)),
        }
    }
}

async fn send(mut channel: Channel, request: Request<Body>) -> Result<Response<Body>, BoxError> {
    poll_fn(|context| channel.poll_ready(context)).await?;
    Ok(channel.call(request).await?)
}

async fn repeat(
    channel: Channel,
    request: Request<Body>,
    policy: Policy,
) -> Result<Response<Body>, BoxError> {
    let (head, body) = request.into_parts();
    let message: Bytes = body.collect().await?.to_bytes();
    let mut backoff = policy.backoff_min;
    for _ in 1..policy.attempts_max {
        let again = Request::from_parts(head.clone(), Body::new(Full::new(message.clone())));
        let answer = send(channel.clone(), again).await;
        if !lost(&answer) {
            return answer;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * policy.factor).min(policy.backoff_max);
    }
    send(
        channel,
        Request::from_parts(head, Body::new(Full::new(message))),
    )
    .await
}

/// Whether the service was not reached, or said UNAVAILABLE (14) before anything else.
fn lost(answer: &Result<Response<Body>, BoxError>) -> bool {
    match answer {
        Ok(answer) => answer
            .headers()
            .get("grpc-status")
            .is_some_and(|status| status == "14"),
        Err(_) => true,
    }
}

/// Reads a span as JSON has it: "0.1s".
fn span(text: &Value) -> Duration {
    let text = text.as_str().unwrap_or("0s");
    Duration::from_secs_f64(text.trim_end_matches('s').parse().unwrap_or(0.0))
}
