use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What a call was refused with.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    /// A stable word in upper snake case; branch on it.
    pub reason: String,
    /// What it is about: ids, limits, the current etag.
    pub facts: HashMap<String, String>,
    /// The fields of the request that were at fault: path and description.
    pub fields: Vec<(String, String)>,
    /// When to try again, where the server knows.
    pub retry_after: Option<Duration>,
}

impl From<&Status> for Refusal {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.as_slice());
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            facts: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            fields: violations
                .unwrap_or_default()
                .iter()
                .map(|each| (each.field.clone(), each.description.clone()))
                .collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }
}
