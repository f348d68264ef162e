//! Promises of this part.
