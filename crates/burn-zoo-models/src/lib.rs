//! Transformer models: configurations, presets, and model directories.
