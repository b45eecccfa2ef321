//! What stands in for Parquet in a build without it.

use std::sync::Arc;

use super::records::RecordRow;
use super::{Counts, InputFile, Rows, SourceError};
use crate::document::Document;

pub(super) fn documents(file: &InputFile, _: &Arc<Counts>) -> Result<Rows<Document>, SourceError> {
    Err(missing(file))
}

pub(super) fn records(file: &InputFile, _: &Arc<Counts>) -> Result<Rows<RecordRow>, SourceError> {
    Err(missing(file))
}

fn missing(file: &InputFile) -> SourceError {
    SourceError::MissingFeature {
        path: file.path().display().to_string(),
        feature: "parquet",
    }
}
