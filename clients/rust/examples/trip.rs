//! The whole trip: sign in, create two nodes from source and a workflow of them, start it, watch it
//! over a cut, read what it gives, bring a file and fetch it, be refused.
//!
//!     QFLOW_REGISTRY=127.0.0.1:7101 QFLOW_ORCHESTRATOR=127.0.0.1:7102 QFLOW_RUNNER=127.0.0.1:7103 \
//!     QFLOW_EMAIL=owner@localhost QFLOW_PASSWORD=… cargo run --example trip

use std::{env, error::Error, pin::pin};

use qflow_client::{
    Client, Options, Refusal,
    qflow::{
        orchestrator::v1::{
            GetExecutionRequest, StartExecutionRequest, execution::Output,
            execution_service_client::ExecutionServiceClient,
        },
        registry::v1::{
            Connection, CreateNodeRequest, CreateWorkflowRequest, SignInRequest,
            WorkflowDefinition, WorkflowInput, WorkflowNode, WorkflowOutput,
            node_service_client::NodeServiceClient, session_service_client::SessionServiceClient,
            workflow_service_client::WorkflowServiceClient,
        },
        runner::v1::{
            CreateUploadRequest, DownloadFileRequest, FinishUploadRequest, WriteUploadRequest,
            download_file_response::Part, file_service_client::FileServiceClient,
            upload_service_client::UploadServiceClient,
        },
    },
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_stream::StreamExt;
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const NEXT: &str = "def next_number(n: int) -> int:\n    return n + 1\n";
const TELL: &str = r#"import time


def tell(name: str, n: int) -> str:
    time.sleep(2)  # time to watch
    return f"{name}: {n}"
"#;
const NAME: &str = "Zoë · 東京 🚲";
const NUMBER: i64 = (1 << 53) + 1; // no double holds it
const CHUNK_BYTES: usize = 64 * 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::new(&Options::from_environment())?;
    let read = |name| env::var(name).unwrap_or_default();
    let session = SessionServiceClient::new(client.registry.clone())
        .sign_in(SignInRequest {
            email: read("QFLOW_EMAIL"),
            password: read("QFLOW_PASSWORD"),
        })
        .await?
        .into_inner();
    client.set_token(&session.token);
    println!("signed in: {}", session.caller.unwrap_or_default().email);
    let workflow = create_workflow(&client).await?;
    let execution = start(&client, workflow).await?;
    watch(&client, &execution).await?;
    files(&client).await?;
    refused(&client).await
}

async fn create_node(client: &Client, place: &str, code: &str) -> Result<String> {
    let request = CreateNodeRequest {
        name: format!("trip: {place}"),
        code: code.to_owned(),
        request_id: Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let made = NodeServiceClient::new(client.registry.clone())
        .create_node(request)
        .await?;
    Ok(made.into_inner().node.unwrap_or_default().id)
}

async fn create_workflow(client: &Client) -> Result<String> {
    let next = create_node(client, "next", NEXT).await?;
    let tell = create_node(client, "tell", TELL).await?;
    let place = |id: &str, node_id| WorkflowNode {
        id: id.into(),
        node_id,
        ..Default::default()
    };
    let input = |name: &str| WorkflowInput {
        name: name.into(),
        ..Default::default()
    };
    let edge = |from: &str, output: &str, to: &str, input: &str| Connection {
        source_node: from.into(),
        source_output: output.into(),
        target_node: to.into(),
        target_input: input.into(),
        ..Default::default()
    };
    let output = |name: &str, node: &str| WorkflowOutput {
        name: name.into(),
        source_node: node.into(),
        source_output: "result".into(),
        ..Default::default()
    };
    let request = CreateWorkflowRequest {
        name: "trip".into(),
        activate: true,
        request_id: Uuid::new_v4().to_string(),
        definition: Some(WorkflowDefinition {
            nodes: vec![place("next", next), place("tell", tell)],
            inputs: vec![input("name"), input("n")],
            connections: vec![
                edge("", "n", "next", "n"),
                edge("", "name", "tell", "name"),
                edge("next", "result", "tell", "n"),
            ],
            outputs: vec![output("number", "next"), output("text", "tell")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let made = WorkflowServiceClient::new(client.registry.clone())
        .create_workflow(request)
        .await?;
    Ok(made.into_inner().workflow.unwrap_or_default().id)
}

/// Asks twice, as one does whose first answer was lost: there is one run.
async fn start(client: &Client, workflow_id: String) -> Result<String> {
    let request = StartExecutionRequest {
        workflow_id,
        input_json: serde_json::json!({"name": NAME, "n": NUMBER}).to_string(),
        request_id: Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let mut stub = ExecutionServiceClient::new(client.orchestrator.clone());
    let first = stub.start_execution(request.clone()).await?.into_inner();
    let again = stub.start_execution(request).await?.into_inner();
    let id = first.execution.unwrap_or_default().id;
    if again.execution.unwrap_or_default().id != id || !again.existing {
        return Err("two runs of one request".into());
    }
    println!("started once: {id}");
    Ok(id)
}

/// Leaves after the first state and goes on from its revision, as after a restart of its own.
async fn watch(client: &Client, execution: &str) -> Result<()> {
    let mut seen = 0;
    {
        let mut steps = pin!(client.watch(execution, 0));
        while seen == 0 {
            seen = steps.next().await.ok_or("it ended")??.revision;
        }
    }
    println!("watching again after revision {seen}");
    let mut steps = pin!(client.watch(execution, seen));
    while let Some(step) = steps.next().await {
        step?;
    }
    let request = GetExecutionRequest {
        execution_id: execution.to_owned(),
        ..Default::default()
    };
    let ended = ExecutionServiceClient::new(client.orchestrator.clone())
        .get_execution(request)
        .await?;
    let Some(Output::OutputJson(output)) = ended.into_inner().execution.and_then(|now| now.output)
    else {
        return Err("the run failed".into());
    };
    #[derive(Deserialize)]
    struct Told {
        number: i64,
        text: String,
    }
    let told: Told = serde_json::from_str(&output)?;
    println!("number: {}", told.number);
    println!("text: {}", told.text);
    if told.number != NUMBER + 1 || told.text != format!("{NAME}: {}", NUMBER + 1) {
        return Err("values have changed on the way".into());
    }
    Ok(())
}

async fn files(client: &Client) -> Result<()> {
    let content = "Grüße\n".repeat(30_000).into_bytes();
    let mut uploads = UploadServiceClient::new(client.runner.clone());
    let request = CreateUploadRequest {
        filename: "grüße.txt".into(),
        size_bytes: content.len() as i64,
        request_id: Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let upload = uploads
        .create_upload(request)
        .await?
        .into_inner()
        .upload
        .unwrap_or_default();
    let mut parts: Vec<_> = content
        .chunks(CHUNK_BYTES)
        .map(|chunk| WriteUploadRequest {
            chunk: chunk.to_vec().into(),
            ..Default::default()
        })
        .collect();
    parts[0].upload_id = upload.id.clone();
    uploads.write_upload(tokio_stream::iter(parts)).await?;
    let request = FinishUploadRequest {
        upload_id: upload.id,
        sha256: hex::encode(Sha256::digest(&content)),
        request_id: Uuid::new_v4().to_string(),
    };
    let file = uploads
        .finish_upload(request)
        .await?
        .into_inner()
        .file
        .unwrap_or_default();
    let request = DownloadFileRequest {
        file_id: file.id,
        ..Default::default()
    };
    let mut parts = FileServiceClient::new(client.runner.clone())
        .download_file(request)
        .await?
        .into_inner();
    let mut back = Vec::new();
    while let Some(answer) = parts.message().await? {
        if let Some(Part::Chunk(chunk)) = answer.part {
            back.extend_from_slice(&chunk);
        }
    }
    if back != content {
        return Err("the file is another".into());
    }
    println!("file: {} {} bytes", file.filename, back.len());
    Ok(())
}

async fn refused(client: &Client) -> Result<()> {
    let request = StartExecutionRequest {
        workflow_id: "no id".into(),
        priority: 101,
        ..Default::default()
    };
    match ExecutionServiceClient::new(client.orchestrator.clone())
        .start_execution(request)
        .await
    {
        Ok(_) => Err("it was not refused".into()),
        Err(status) => {
            let refusal = Refusal::from(&status);
            println!("refused: {:?} {}", refusal.code, refusal.reason);
            for (field, description) in refusal.fields {
                println!("  {field}: {description}");
            }
            Ok(())
        }
    }
}
