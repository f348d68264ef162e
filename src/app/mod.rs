//! The composition root: build in order, run, reload, drain.
