//! burn-zoo: facade.
