use std::{error::Error, time::Duration};

use async_stream::try_stream;
use tokio_stream::Stream;
use tonic::{Code, Status};

use crate::{
    Client,
    qflow::orchestrator::v1::{
        Execution, ExecutionStatus, ExecutionView, GetExecutionRequest, WatchExecutionRequest,
        WatchExecutionResponse, execution_service_client::ExecutionServiceClient,
        watch_execution_response::Event,
    },
};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longer than a restart of a service takes; after that the cut is the caller's to see.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Says whether a run with this status is over.
pub fn is_final(status: ExecutionStatus) -> bool {
    matches!(
        status,
        ExecutionStatus::Completed | ExecutionStatus::Failed | ExecutionStatus::Cancelled
    )
}

impl Client {
    /// Gives the steps of a run after a revision (0: all that stands) until the run is over. A watch
    /// that is cut goes on after the last revision that it gave.
    pub fn watch(
        &self,
        execution_id: &str,
        mut after_revision: i64,
    ) -> impl Stream<Item = Result<WatchExecutionResponse, Status>> + Send + use<> {
        let mut stub = ExecutionServiceClient::new(self.orchestrator.clone());
        let execution_id = execution_id.to_owned();
        try_stream! {
            let (mut pause, mut away) = (PAUSE_MIN, Duration::ZERO);
            loop {
                let request =
                    WatchExecutionRequest { execution_id: execution_id.clone(), after_revision };
                let mut opened = stub.watch_execution(request).await.map(|answer| answer.into_inner());
                let cut = loop {
                    let step = match &mut opened {
                        Ok(steps) => steps.message().await,
                        Err(status) => Err(status.clone()),
                    };
                    match step {
                        Ok(Some(step)) => {
                            (pause, away) = (PAUSE_MIN, Duration::ZERO);
                            after_revision = step.revision;
                            let over = execution_of(&step).is_some_and(|now| is_final(now.status()));
                            yield step;
                            if over {
                                return;
                            }
                        }
                        Ok(None) => {
                            // It may have been over at the revision that the watch goes on after.
                            let request = GetExecutionRequest {
                                execution_id: execution_id.clone(),
                                view: ExecutionView::Basic.into(),
                            };
                            match stub.get_execution(request).await {
                                Ok(now) if is_final(
                                    now.get_ref().execution.as_ref().map(Execution::status).unwrap_or_default(),
                                ) => return,
                                Ok(_) => break Status::unavailable("the watch ends again and again"),
                                Err(status) => break status,
                            }
                        }
                        Err(status) => break status,
                    }
                };
                if !is_lost(&cut) || away >= AWAY_MAX {
                    Err(cut)?;
                }
                tokio::time::sleep(pause).await;
                away += pause;
                pause = (2 * pause).min(PAUSE_MAX);
            }
        }
    }
}

/// Whether the service was not reached, or the connection ended: then there is something behind the
/// status, while one that the service gave stands alone.
fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

fn execution_of(step: &WatchExecutionResponse) -> Option<&Execution> {
    match step.event.as_ref()? {
        Event::Snapshot(snapshot) => snapshot.execution.as_ref(),
        Event::Delta(delta) => delta.execution.as_ref(),
        _ => None,
    }
}
