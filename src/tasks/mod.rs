//! Periodic work that can also be poked: one idempotent function, run on a period or when asked, taking no
//! input, so that the timer and the button share one path.

pub mod calendar;
